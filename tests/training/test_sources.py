"""The trainer takes its examples from any source, and asks it for everything that depends on where they come from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from helpers import losses, trainer

import prefopt
from prefopt.core.loss import Loss
from prefopt.data import TokenizedDataset
from prefopt.training import build
from prefopt.training.auxiliary import Auxiliary
from prefopt.training.sources import ExampleSource


class Same:
    """The same two examples, again and again; four micro-batches are an epoch."""

    def __init__(self, dataset: TokenizedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Any]:
        for _ in range(len(self)):
            yield self.dataset.collate([self.dataset[0], self.dataset[1]])


class Scale(Auxiliary):
    """A number that is trained next to the policy: its gradient is 6 after every micro-batch."""

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.tensor([1.0]))
        self.gradients: list[float] = []

    def extend_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.add_param_group({"params": [self.weight], "lr": 0.5, "weight_decay": 0.0})

    def after_backward(self, *_: Any) -> None:
        (6.0 * self.weight).sum().backward()

    def clipped_apart(self) -> list[torch.nn.Parameter]:
        return [self.weight]

    def end_of_step(self) -> None:
        self.gradients.append(self.weight.grad.item())
        self.weight.grad = None


class Foreign(ExampleSource):
    def __init__(self, objective: prefopt.Objective) -> None:
        self.objective, self.auxiliary = objective, Scale()
        self.seen: list[float] = []
        self.steps = 0

    def train_batches(self, dataset: TokenizedDataset, batch_size: int) -> Same:
        return Same(dataset)

    def eval_batches(self, dataset: TokenizedDataset, batch_size: int) -> Same:
        return Same(dataset)

    def metrics(self, loss: Loss) -> dict[str, torch.Tensor]:
        return {"margin": loss.metrics["rewards/margins"]}

    def observe(self, metrics: dict[str, torch.Tensor]) -> None:
        self.seen += metrics["margin"].tolist()

    def end_of_step(self) -> None:
        super().end_of_step()
        self.steps += 1

    def epoch(self, counted: float) -> float:
        return 10.0 + self.steps

    def save(self, folder: Path, *, main: bool) -> None:
        (folder / "steps").write_text(str(self.steps))

    def load(self, folder: Path) -> None:
        self.steps = int((folder / "steps").read_text())


ARGS = {"max_steps": 3, "gradient_accumulation_steps": 2, "optim": "sgd", "learning_rate": 1e-2, "max_grad_norm": 4.0}


def test_a_run_is_fed_and_extended_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "DatasetSource", Foreign)
    args = ARGS | {"output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 2}
    run = trainer("dpo", tiny.pairs(8), eval_dataset=tiny.pairs(8), reference=tiny.model(1), args=args)
    run.train()
    source = run.source
    # Three steps of two micro-batches of two examples; all logged values are those of the source's own metric.
    assert len(source.seen) == 12
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    for number, entry in enumerate(logs):
        assert entry["margin"] == pytest.approx(sum(source.seen[4 * number : 4 * number + 4]) / 4, rel=1e-6)
        assert "rewards/margins" not in entry
    assert [entry["epoch"] for entry in logs] == [11, 12, 13]
    # Two micro-batches add up to 12, which is clipped to 4 without the policy's gradients, and moves 0.5 · 4 a step.
    assert source.auxiliary.gradients == pytest.approx([4.0] * 3, rel=1e-5)
    assert source.auxiliary.weight.item() == pytest.approx(1 - 3 * 2, rel=1e-5)
    evaluated = run.evaluate()
    assert evaluated["eval_margin"] != 0
    assert len(source.seen) == 12
    again = trainer("dpo", tiny.pairs(8), reference=tiny.model(1), args=args)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.source.steps == 3
    assert losses(again)[-1] == pytest.approx(losses(run)[-1], rel=1e-6)


def test_a_dataset_source_trains_nothing_next_to_the_policy() -> None:
    run = trainer("dpo", tiny.pairs(8), args={"max_steps": 1})
    run.train()
    auxiliary = run.source.auxiliary
    assert (auxiliary.models, auxiliary.value_head) == ((), None)
    assert not auxiliary.clipped_with_policy() and not auxiliary.clipped_apart()
    trained = {id(weight) for group in run.optimizer.param_groups for weight in group["params"]}
    assert trained == {id(weight) for weight in run.policy.parameters() if weight.requires_grad}
