"""BCO: its value and gradient against the reference, its shift δ, and its bound on DPO."""

import math
from types import SimpleNamespace

import mpmath
import pytest
import torch
from mpmath import mpf
from references import reference

from prefopt.core.batches import Completions, Labelled, Pairs
from prefopt.objectives import get_objective


def pairs():
    numbers = torch.Generator().manual_seed(3)
    values = [-torch.rand(4, dtype=torch.float64, generator=numbers) * 9 for _ in range(4)]
    leaves = [value.requires_grad_() for value in values[:2]]
    return Pairs.from_sums(*leaves, *values[2:]), leaves


def step_state(objective, batch):
    return objective.prepare(objective.init_state(), objective.observe(batch.detach()))


def arguments(objective, state):
    given = {name: value for name, value in vars(objective).items() if name != "needs"}
    given |= {name: value.tolist() for name, value in state.items()}
    return {name: mpf(value) if isinstance(value, float) else value for name, value in given.items()}


@pytest.mark.parametrize("setting", [{}, {"beta": 0.6, "average": "row"}])
def test_bco_value_and_gradient(setting):
    objective = get_objective("bco", **setting)
    logps = torch.tensor([-2.0, -1.0, -7.0, -0.5], dtype=torch.float64, requires_grad=True)
    ref_logps = torch.tensor([-3.0, -0.1, -2.0, -5.0], dtype=torch.float64)
    rows = Completions(logps=logps, ref_logps=ref_logps, lengths=torch.ones(4, dtype=torch.int64))
    batch = Labelled(completions=rows, desirable=torch.tensor([True, False, True, True]))
    state = step_state(objective, batch)
    value = objective(batch, state).mean()
    value.backward()

    def exact(moved=-1, step=0):
        made = []
        for i in range(4):
            one = SimpleNamespace(logps=[mpf(float(logps[i].detach())) + (step if i == moved else 0)])
            one.ref_logps = [mpf(float(ref_logps[i]))]
            made.append(SimpleNamespace(completion=one, desirable=bool(batch.desirable[i])))
        return reference("bco").module.loss(made, **arguments(objective, state))

    with mpmath.workdps(50):
        assert float(value.detach()) == pytest.approx(float(exact()), rel=1e-13)
        step = mpf("1e-20")
        for i in range(4):
            slope = (exact(i, step) - exact(i, -step)) / (2 * step)
            assert float(logps.grad[i]) == pytest.approx(float(slope), rel=1e-12)


def test_bco_at_the_reference_and_on_pairs():
    batch, _ = pairs()
    same = Pairs.from_sums(torch.ones(3), torch.ones(3) * 2, torch.ones(3), torch.ones(3) * 2)
    for name in ("bco", "bco_pair"):
        assert float(get_objective(name)(same).mean()) == pytest.approx(2 * math.log(2), rel=1e-6)
    assert float(get_objective("bco", average="row")(same).mean()) == pytest.approx(math.log(2), rel=1e-6)
    one, two = (get_objective(name, beta=0.4)(batch).mean() for name in ("bco", "bco_pair"))
    torch.testing.assert_close(one, two)


def test_bco_pair_is_at_least_dpo():
    batch, _ = pairs()
    dpo = get_objective("dpo", beta=0.4)(batch).terms["preference"].values
    for delta in (-3.0, 0.0, 0.7, 5.0):
        bco = get_objective("bco_pair", beta=0.4)(batch, {"delta": torch.tensor(delta)}).terms["quality"].values
        assert (bco >= dpo).all()


def test_bco_shift_is_the_mean_of_all_rewards_seen():
    objective = get_objective("bco_pair", beta=0.5)
    state, rewards = objective.init_state(), []
    for size in (1, 3, 2):
        batch = Pairs.from_sums(*(torch.randn(size) for _ in range(4)))
        rewards.append(torch.cat([objective.reward(batch.chosen), objective.reward(batch.rejected)]))
        state = objective.prepare(state, objective.observe(batch))
        assert float(state["delta"]) == pytest.approx(float(torch.cat(rewards).mean()), abs=1e-6)
    frozen = objective.prepare(state, objective.observe(batch), frozen=True)
    assert frozen["delta"] is state["delta"]


def test_bco_shift_carries_no_gradient():
    batch, leaves = pairs()
    objective = get_objective("bco_pair", beta=0.5)
    state = step_state(objective, batch)
    assert not state["delta"].requires_grad
    (implicit,) = torch.autograd.grad(objective(batch).mean(), leaves[0], retain_graph=True)
    (explicit,) = torch.autograd.grad(objective(batch, state).mean(), leaves[0])
    assert torch.equal(implicit, explicit)
