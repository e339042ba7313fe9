"""How a step is cut into micro-batches must not change it."""

import pytest
import tiny
import torch
from helpers import SIX, Watch, quick, trainer
from parity import InFloat64

import prefopt
from prefopt.core.batches import Labelled


def gradient(name: str, batch: int, accumulation: int, **options: object) -> tuple[torch.Tensor, dict]:
    watch = Watch()
    objective = prefopt.get_algorithm(name).objective
    run = trainer(
        name,
        tiny.pairs(8),
        model=tiny.model(0, torch.float64),
        reference=tiny.model(1, torch.float64) if objective.needs.reference else None,
        args={
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "max_steps": 1,
            "optim": "sgd",
        },
        callbacks=[watch],
        **options,
    )
    # Norms of the model would be taken in float32, and rows that share a prompt round otherwise there.
    with InFloat64():
        run.train()
    return watch.gradients[0], run.state.log_history[0]


SPLITS = [(name, *split) for split in ((2, 4), (1, 8)) for name in SIX]


@pytest.mark.parametrize(
    ("name", "batch", "accumulation"),
    quick(SPLITS, [("sft", 1, 8), ("kto", 1, 8), ("dpo", 2, 4), ("simpo", 2, 4)]),
)
def test_micro_batches_change_neither_gradient_nor_metrics(name: str, batch: int, accumulation: int) -> None:
    whole, log = gradient(name, 8, 1)
    parts, log_of_parts = gradient(name, batch, accumulation)
    assert (whole - parts).norm() <= 1e-12 * whole.norm()
    assert whole.norm() > 0
    for key in log:
        assert log_of_parts[key] == pytest.approx(log[key], rel=1e-6, abs=1e-9), key


def test_a_wrong_denominator_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With means of micro-batch means instead, completions of different lengths give another gradient."""
    whole, _ = gradient("sft", 8, 1)
    monkeypatch.setattr("prefopt.training.trainer.step_loss", lambda loss, denominators, ranks: loss.mean() / 4)
    parts, _ = gradient("sft", 2, 4)
    assert (whole - parts).norm() > 1e-3 * whole.norm()


def test_the_last_short_step_is_averaged_over_its_own_rows() -> None:
    """Six rows at 4 per step: the second step has two, and its loss is their mean."""
    run = trainer("dpo", tiny.pairs(6), reference=tiny.model(1), args={"num_train_epochs": 1, "learning_rate": 0.0})
    run.train()
    first, second = (entry["loss"] for entry in run.state.log_history if "loss" in entry)
    run.eval_dataset = run.train_dataset
    total = run.evaluate()["eval_loss"]
    assert (4 * first + 2 * second) / 6 == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("name", quick(SIX, ["sft", "dpo", "kto"]))
def test_evaluation_does_not_depend_on_the_batch_size(name: str) -> None:
    results = []
    for size in (1, 3, 16):
        run = trainer(
            name,
            None,
            eval_dataset=tiny.pairs(7),
            reference=tiny.model(1) if prefopt.get_algorithm(name).objective.needs.reference else None,
            args={"per_device_eval_batch_size": size},
        )
        metrics = run.evaluate()
        results.append({k: v for k, v in metrics.items() if "per_second" not in k and "runtime" not in k})
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for key, value in results[0].items():
            assert other[key] == pytest.approx(value, rel=2e-5, abs=1e-6), key


def test_kto_z0_spans_the_whole_step() -> None:
    """z0 of a step of four micro-batches is the clamped mean over all its mismatched rows, not per micro-batch."""
    seen: list[float] = []
    kto = prefopt.get_algorithm("kto").objective

    class Spy(type(kto)):
        def terms(self, batch: Labelled, state: dict) -> dict:
            seen.append(state["z0"].item())
            return super().terms(batch, state)

    run = trainer(
        "kto",
        tiny.pairs(4),
        reference=tiny.model(1),
        args={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 1},
    )
    spy = Spy()
    run.objective = run.scorer.objective = spy
    run.train()
    assert len(seen) == 4
    assert len(set(seen)) == 1
    assert seen[0] > 0


def test_several_evaluation_sets_by_name() -> None:
    run = trainer("dpo", None, reference=tiny.model(1), eval_dataset={"a": tiny.pairs(3), "b": tiny.pairs(4, seed=1)})
    metrics = run.evaluate()
    assert metrics["eval_a_loss"] != metrics["eval_b_loss"]
