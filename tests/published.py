"""Numbers computed by published code: ``tests/fixtures/author_code_*.json`` name repository, commit, file, function."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@cache
def entries(name: str) -> list[dict[str, Any]]:
    """All of a file, by the end of its name."""
    return json.loads((Path(__file__).parent / "fixtures" / f"author_code_{name}.json").read_text())


def of_rollouts(loss: str, variant: str, repo: str = "") -> list[dict[str, Any]]:
    """Those on sampled completions with this loss and variant; at least one."""
    found = [e for e in entries("rollouts") if e["loss"] == loss and e["variant"] == variant and repo in e["repo"]]
    assert found
    return found


def tensor(values: Any) -> Tensor:
    """In float64, as the published numbers are."""
    return torch.tensor(values, dtype=torch.float64)
