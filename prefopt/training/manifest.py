"""Whole checkpoints: sealed with a manifest when they are written, and checked before a run resumes from one.

A checkpoint is written in a folder of its own, synced, sealed and renamed, so a folder called ``checkpoint-N`` is whole
unless something damaged it later.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.core.errors import UsageError
from prefopt.data import TokenizedDataset

MANIFEST = "manifest.json"
UNFINISHED = "unfinished"
"""Name of the folder in which a checkpoint is written."""
_PIECE = 2**20


def seal(folder: Path, run: Mapping[str, Any]) -> None:
    """Write the manifest of a checkpoint, after all of its files have reached the disk.

    Args:
        folder: The checkpoint.
        run: What a resumed run must have in common with this one, and what it should know.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
        _sync(path)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"run": run, "files": files}, indent=1, default=str) + "\n")
    _sync(manifest)
    _sync(folder)


def flaw_of(folder: Path) -> str:
    """Why a checkpoint is not whole; empty where it is."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}: it was not written to its end, or by prefopt 0.1"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read"
    for name, known in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != known["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {known['size']}"
        if _sha256(path) != known["sha256"]:
            return f"the content of {name} has changed"
    return ""


def newest_whole(output_dir: str | Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest whole checkpoint of a folder, and the newer ones that are not whole, each with its flaw."""
    flawed: dict[Path, str] = {}
    for folder in reversed(checkpoints_of(output_dir)):
        flaw = flaw_of(folder)
        if not flaw:
            return folder, flawed
        flawed[folder] = flaw
    return None, flawed


def checkpoints_of(output_dir: str | Path) -> list[Path]:
    """The checkpoints of a folder, the oldest first."""
    found = [
        (int(match[1]), path)
        for path in Path(output_dir).glob("checkpoint-*")
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return [path for _, path in sorted(found)]


def run_of(folder: Path) -> dict[str, Any]:
    """What the manifest of a checkpoint says about its run; empty where there is no manifest."""
    try:
        return json.loads((folder / MANIFEST).read_text())["run"]
    except (OSError, ValueError, KeyError):
        return {}


def refuse_another_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Refuse to resume a run from the checkpoint of another one.

    Args:
        folder: The checkpoint.
        run: As for `seal`.

    Raises:
        UsageError: Naming what differs, with the remedy.
    """
    # As they come out of a file: tuples are lists there, and keys are strings.
    before, now = run_of(folder).get("identity"), json.loads(json.dumps(run["identity"], default=str))
    if before is None:
        return
    differences = [_difference(key, before.get(key), now.get(key)) for key in now if before.get(key) != now.get(key)]
    if differences:
        raise UsageError(
            f"{folder} was written by another run: {'; '.join(differences)}. Put that back, train into another folder, "
            "or, if the change is meant, resume with resume_anyway=True (--resume-anyway)."
        )


def changed_arguments(folder: Path, run: Mapping[str, Any]) -> list[str]:
    """Training arguments that are others than those of a checkpoint, in words."""
    before, now = run_of(folder).get("arguments", {}), json.loads(json.dumps(run["arguments"], default=str))
    return [f"{key} {now[key]} (was {before[key]})" for key in now if key in before and before[key] != now[key]]


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        parts = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return ", ".join(f"{key} {name}={now.get(name)!r} was {before.get(name)!r}" for name in parts[:3])
    if key in ("base", "data"):
        return {"base": "the base model is another one", "data": "the training data are others"}[key]
    return f"{key}={now!r} was {before!r}"


def digest_of(dataset: TokenizedDataset | None) -> str | None:
    """A hash of the tokens and plain labels of a dataset, in their order."""
    if dataset is None:
        return None
    digest = hashlib.sha256()
    for example in dataset.examples:
        for ids in (example.prompt, *example.completions):
            digest.update(len(ids).to_bytes(4, "little"))
            digest.update(np.ascontiguousarray(ids).tobytes())
        plain = {name: value for name, value in example.labels.items() if not isinstance(value, np.ndarray)}
        digest.update(repr(sorted(plain.items())).encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
