"""A result as a file: what was run, on what, with which versions and commit, and what came out."""

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent


def write(out: Path, command: str, setting: str, *libraries: str, **results: Any) -> None:
    """Write a result as JSON, and say where.

    Args:
        out: the file.
        command: what makes it again.
        setting: what was measured, and how.
        libraries: packages that were run beside torch, transformers and prefopt.
        results: what came out, by name.
    """
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout
    packages = ("torch", "transformers", *libraries, "prefopt")
    report = {
        "command": command,
        "setting": setting,
        "hardware": {"machine": platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "commit": commit.strip(),
        **results,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{out}")
