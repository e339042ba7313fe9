"""The derivatives of a reference, on which the certificates of gradients rest."""

import math

import pytest
import torch
from references import reference

from prefopt import get_objective
from prefopt.core.batches import Completions, Pairs
from prefopt.verify import Seeded, draw
from prefopt.verify.evaluation import Curvature, loss_of, state_of
from prefopt.verify.mathematics import entries


@pytest.mark.parametrize("name", ["dpo", "simpo", "kto", "infonca", "tdpo1", "reward"])
def test_where_a_loss_is_smooth_its_two_slopes_are_one(name: str) -> None:
    """Between slopes that are far apart anything would count as right."""
    objective = get_objective(name)
    for seed in range(6):
        batch = draw(Seeded(seed), objective.needs, regime="ordinary", rows=3, longest=6).build()
        slopes = reference(name).slopes(objective, batch, state_of(objective, batch))
        for path, index in entries(batch):
            left, right = slopes.left(path, index), slopes.right(path, index)
            assert abs(left - right) <= 1e-15 * (abs(left) + 1), (path, index)


@pytest.mark.parametrize("margin", [-4000.0, -370.0, -3.0, 0.0, 3.0, 370.0, 4000.0])
def test_how_far_rounding_moves_a_gradient_is_known_in_the_tails_too(margin: float) -> None:
    """g = −β σ(−β h) for DPO, and x ∂g/∂x = ±β² x σ(β h) σ(−β h) for each of its four inputs."""

    def one(logp: float, ref_logp: float) -> Completions:
        length = torch.ones(1, dtype=torch.int64)
        return Completions(
            logps=torch.tensor([logp]).double(), ref_logps=torch.tensor([ref_logp]).double(), lengths=length
        )

    beta, batch = 0.1, Pairs(chosen=one(-5000.0, -5000.0 - margin), rejected=one(-7.0, -7.0))
    tail, other = (1 / (1 + math.exp(sign * beta * margin)) for sign in (1, -1))
    inputs = 5000.0 + abs(5000.0 + margin) + 14.0
    found = Curvature(loss_of(get_objective("dpo", beta=beta)), batch, {}).scale("chosen.logps", (0,))
    assert found == pytest.approx(beta * tail * (1 + beta * other * inputs), rel=1e-9, abs=0)
