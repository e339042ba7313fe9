"""What a pipeline has done so far: which stages are finished, and what they were made from."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from prefopt.core.errors import UsageError
from prefopt.core.version import VERSION
from prefopt.pipeline.stages import READING, RESULTS, Stage

RECORD_FILE = "pipeline.json"
RUNNING, FINISHED = "running", "finished"
WHOLE = 2**28
"""Files up to so many bytes are known by their content, larger ones by size and time."""
SHOWN = 3
"""Differences that a message names."""


@dataclass(frozen=True)
class Made:
    """A stage as it was started or finished.

    Attributes:
        status: ``"running"`` (or cut off) or ``"finished"``.
        config: its config, with results of other stages by name.
        inputs: digests of the files it reads, by how the config names them.
        output: digest of its result; None while it is running.
    """

    status: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    output: str | None = None


@dataclass
class Record:
    """The file ``pipeline.json``, written whole or not at all.

    Attributes:
        folder: of the pipeline.
        stages: by name.
    """

    folder: Path
    stages: dict[str, Made] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record of a folder; an empty one where there is none.

        Raises:
            UsageError: the file cannot be read.
        """
        path = folder / RECORD_FILE
        if not path.is_file():
            return cls(folder)
        try:
            stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
            return cls(folder, {name: Made(**made) for name, made in stages.items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path} is no record of a pipeline ({error}): put back the one that was there, or name another --out."
            ) from None

    def write(self) -> None:
        """To disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        values = {"prefopt": VERSION, "stages": {name: asdict(made) for name, made in self.stages.items()}}
        draft = self.folder / f"{RECORD_FILE}.new"
        draft.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        draft.replace(self.folder / RECORD_FILE)


def made_from(stage: Stage, out: Path) -> Made:
    """What a stage would be made from now. Results of stages that are not there yet are left out."""
    config = json.loads(json.dumps(dict(stage.values), default=str))
    inputs = {name: value for name, path in _inputs(stage, out) if (value := digest(path)) is not None}
    return Made(RUNNING, config, inputs)


def _inputs(stage: Stage, out: Path) -> Iterator[tuple[str, Path]]:
    """The files and folders that a stage reads, by how its config names them; not those of a hub."""
    values = stage.values
    data = values.get("data") or {}
    names = [name for key in READING for name in _texts(values.get(key))]
    names += [data.get("train"), data.get("eval"), (values.get("watch") or {}).get("held_out")]
    for name in names:
        if not isinstance(name, str):
            continue
        named = RESULTS.search(name)
        # A weight stands before a reward's name, and a function's name behind its file.
        place = Path(os.path.expanduser(name.rpartition("*")[2].strip()))
        if named:
            yield named[0], out / named[1]
        elif place.suffix.startswith(".py:"):
            yield name, place.with_suffix(".py")
        elif place.exists():
            yield name, place


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)


def digest(path: Path) -> str | None:
    """What a file, or the files right in a folder, hold; None where nothing is there."""
    if path.is_file():
        return _digest_of([path])
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else []
    return _digest_of(files) if files else None


def _digest_of(files: list[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        status = file.stat()
        total.update(file.name.encode() + b"\0")
        if status.st_size > WHOLE:
            total.update(f"{status.st_size} {status.st_mtime_ns}".encode())
            continue
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def differences(made: Made, now: Made) -> list[str]:
    """What is different now from what a stage was made from, in words. Inputs that are not there now are no difference:
    they are results of stages that run before."""
    before, after = dict(_flat(made.config)), dict(_flat(now.config))
    found = [
        f"{key} was {_shown(before, key)} and is {_shown(after, key)}"
        for key in {**before, **after}
        if _shown(before, key) != _shown(after, key)
    ]
    files = [name for name in now.inputs if name in made.inputs and made.inputs[name] != now.inputs[name]]
    return found + [f"{name} has other content" for name in files]


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "not given"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
