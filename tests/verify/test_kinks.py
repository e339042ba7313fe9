"""What the comparison of gradients leaves out, and what it counts as an input."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from references import reference

from prefopt import get_objective
from prefopt.core.batches import Completions, Pairs
from prefopt.verify.cases import Draw, Response
from prefopt.verify.evaluation import state_of
from prefopt.verify.mathematics import Reference, check_gradient
from prefopt.verify.search import Trial


def pairs(*chosen: float) -> Pairs:
    def rows(*logps: float) -> Completions:
        values = torch.tensor(logps, dtype=torch.float64)
        return Completions(logps=values, ref_logps=values - 1, lengths=torch.ones(len(logps), dtype=torch.int64))

    return Pairs(chosen=rows(*chosen), rejected=rows(*(-20.0 - i for i in range(len(chosen)))))


@pytest.mark.parametrize("name", ["aot_paired", "aot_unpaired"])
def test_an_order_that_rounding_decides_has_no_slope(name: str) -> None:
    """Equal values have the slopes of either side; all but equal ones may change places."""
    objective = get_objective(name)
    for moved, smooth in ((0.0, True), (4e-15, False), (1e-9, True)):
        # Margins and log-ratios of the first two differ by what is moved.
        batch = pairs(-3.0, -4.0 - moved, -8.0)
        batch = replace(batch, chosen=replace(batch.chosen, ref_logps=torch.tensor([-5.0, -6.0, -7.0]).double()))
        assert reference(name).smooth(objective, batch, state_of(objective, batch)) is smooth, moved


@pytest.mark.parametrize("name", ["aot_paired", "aot_unpaired"])
def test_gradients_are_compared_only_where_the_loss_is_smooth(name: str) -> None:
    """1e-15 is lost in a sum of two, so that two pairs change their quantiles: no error of the loss."""

    def responses(logps: tuple[float, ...], ref_logps: tuple[float, ...]) -> tuple[Response, ...]:
        values = zip(logps, ref_logps, strict=True)
        return tuple(Response(1, (True,), {"logps": (x,), "ref_logps": (y,)}) for x, y in values)

    chosen = responses((-3.0, -4.0 - 1e-15, -8.0), (-20.0, -21.0, -5.0))
    rejected = responses((-20.0, -21.0, -22.0), (-1.0, -1.5, -2.0))
    batch = Draw(Pairs, {"chosen": chosen, "rejected": rejected}, {"ids": [1, 2, 3]}, tokens=False)
    one, mathematics = Trial(get_objective(name), batch), reference(name)
    assert check_gradient(mathematics, one).passed
    anywhere = Reference(SimpleNamespace(loss=mathematics.module.loss))
    assert not check_gradient(anywhere, one).passed


def test_a_hyperparameter_counts_as_an_input_where_the_reference_says_so() -> None:
    """τ ∂g/∂τ of `discopop` by its reference and by differences of the loss's own gradient; nothing for `dpo`."""
    batch, step = pairs(-19.0), 1e-6

    def slope(tau: float) -> float:
        logps = batch.chosen.logps.clone().requires_grad_()
        moved = replace(batch, chosen=replace(batch.chosen, logps=logps))
        return float(torch.autograd.grad(get_objective("discopop", tau=tau)(moved).mean(), logps)[0])

    def counted(name: str) -> float:
        objective = get_objective(name)
        slopes = reference(name).slopes(objective, batch, state_of(objective, batch))
        return slopes.of_hyperparameters("chosen.logps", (0,))

    tau = get_objective("discopop").tau
    expected = abs(tau * (slope(tau + step) - slope(tau - step)) / (2 * step))
    assert expected > 0
    assert counted("discopop") == pytest.approx(expected, rel=1e-5)
    assert counted("dpo") == 0
