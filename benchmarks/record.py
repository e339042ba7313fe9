"""A result as a file: what was run, on what, with which versions and commit, and what came out."""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import prefopt

HERE = Path(__file__).parent


def commit() -> str:
    """Of this checkout; of a copy without its history, what the environment variable PREFOPT_COMMIT says."""
    if given := os.environ.get("PREFOPT_COMMIT"):
        return given
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout[:-1]


def about(*libraries: str) -> dict[str, Any]:
    """What results depend on: the machine, and versions of torch, transformers, prefopt and of further packages."""
    hardware: dict[str, Any] = {"machine": platform.machine(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        hardware |= {"device": torch.cuda.get_device_name(), "memory_gib": round(memory / 2**30, 1)}
    packages = ("torch", "transformers", *libraries)
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    versions["prefopt"] = prefopt.__version__
    return {"hardware": hardware, "versions": versions}


def write(out: Path, command: str, setting: str, *libraries: str, **results: Any) -> None:
    """Write a result as JSON, and say where.

    Args:
        out: the file.
        command: what makes it again.
        setting: what was measured, and how.
        libraries: packages that were run beside torch, transformers and prefopt.
        results: what came out, by name.
    """
    report = {"command": command, "setting": setting, **about(*libraries), "commit": commit(), **results}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{out}")
