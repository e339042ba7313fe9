"""The pages on adding an objective and on verifying a loss are executed."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.core import registry
from prefopt.core.batches import Pairs

DOCS = Path(__file__).parent.parent / "docs"


def run(page: Path, namespace: dict[str, Any]) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.fixture
def executed() -> Any:
    namespace: dict[str, Any] = {"__name__": "adding_an_objective"}
    try:
        run(DOCS / "adding-an-objective.md", namespace)
        yield namespace
    finally:
        registry.REGISTRY.pop("odpo", None)


def test_the_example_is_certified_and_is_the_loss_it_says(executed: dict[str, Any]) -> None:
    assert executed["report"]
    objective = executed["objective"]
    assert objective.alpha == 0.5
    one = torch.tensor([1.0])
    pairs = Pairs.from_sums(one, one, one, one, chosen_score=4 * one, rejected_score=one)
    # At the reference h = 0: log(1 + exp(α log 3)) with α = ½.
    assert objective(pairs).mean().item() == pytest.approx(torch.log(torch.tensor(1 + 3**0.5)).item(), rel=1e-6)


def test_the_functions_are_verified() -> None:
    namespace: dict[str, Any] = {"__name__": "verifying_a_loss"}
    run(DOCS / "verifying-a-loss.md", namespace)
    assert namespace["report"].claim == namespace["report_of_tokens"].claim == "dpo"
