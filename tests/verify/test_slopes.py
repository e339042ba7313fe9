"""The derivatives of a reference, on which the certificates of gradients rest."""

import pytest
from references import reference

from prefopt import get_objective
from prefopt.verify import Seeded, draw
from prefopt.verify.evaluation import state_of
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
