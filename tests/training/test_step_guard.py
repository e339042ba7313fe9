"""Steps that are not finite change nothing, and a run of them ends with a diagnosis."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from helpers import losses, trainer

from prefopt.core.errors import Diverged
from prefopt.training.step_guard import MOST_IN_A_ROW, ROWS_FILE


def broken_at(run, steps: set[int], *, gradient: bool = False):
    """Let the losses, or only the gradients, of some steps (from 0) be nan."""
    compute = run.compute_loss

    def lossy(*args, **options):
        loss = compute(*args, **options)
        if run.state.global_step not in steps:
            return loss
        if not gradient:
            return loss * torch.nan
        weight = next(weight for weight in run.policy.parameters() if weight.requires_grad)
        return loss + (weight.flatten()[0] * 0).sqrt()  # 0, with a slope that is not finite

    run.compute_loss = lossy
    return run


def make(tmp_path: Path, algorithm: str = "dpo", **changes: object):
    rows = tiny.labelled(12) if algorithm == "bco" else tiny.pairs(12)
    args = {"output_dir": str(tmp_path), "learning_rate": 1e-3, "max_steps": 4, "weight_decay": 0.1, **changes}
    return trainer(algorithm, rows, args=args)


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
@pytest.mark.parametrize("norm", [0.0, 1.0], ids=["unclipped", "clipped"])
def test_a_step_that_is_not_finite_changes_nothing(gradient: bool, norm: float, tmp_path: Path) -> None:
    run = broken_at(make(tmp_path, max_steps=1, max_grad_norm=norm), {0, 99}, gradient=gradient)
    before = {name: weight.detach().clone() for name, weight in run.policy.named_parameters()}
    with pytest.raises(Diverged, match="none of the 1 steps had a finite loss and gradient"):
        run.train()
    assert all(torch.equal(weight, before[name]) for name, weight in run.policy.named_parameters())
    assert not any(run.optimizer.state[weight] for weight in run.policy.parameters())


def test_a_run_goes_on_after_it_and_says_so(tmp_path: Path) -> None:
    run = broken_at(make(tmp_path), {1})
    run.train()
    history = losses(run)
    assert [torch.isfinite(torch.tensor(loss)).item() for loss in history] == [True, False, True, True]
    assert all(torch.isfinite(weight).all() for weight in run.policy.parameters())
    assert run.state.log_history[-2]["skipped_steps"] == 1
    rows = [json.loads(line) for line in (tmp_path / ROWS_FILE).read_text().splitlines()]
    assert {(row["step"], row["not_finite"]) for row in rows} == {(2, "loss")}
    assert len(rows) == 4
    assert {"prompt", "chosen", "rejected"} <= set(rows[0])


def test_the_objective_does_not_remember_a_step_that_was_skipped(tmp_path: Path) -> None:
    run = broken_at(make(tmp_path, "bco", max_steps=2), {1})
    states = []
    end = run._end_of_step
    run._end_of_step = lambda: (end(), states.append(dict(run.objective_state)))
    run.train()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_run_of_them_stops_with_a_diagnosis(tmp_path: Path) -> None:
    run = broken_at(make(tmp_path, max_steps=20), set(range(1, 20)))
    with pytest.raises(Diverged, match=f"{MOST_IN_A_ROW} steps in a row.*lower the learning rate"):
        run.train()
    assert run.state.global_step == MOST_IN_A_ROW
    assert all(torch.isfinite(weight).all() for weight in run.policy.parameters())
