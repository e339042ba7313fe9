"""Losses that measure a distance keep their digits in float32 where little of it is left."""

import pytest
from near_optimum import keeps_its_digits, near_optimum
from references import reference


@pytest.mark.parametrize("name", ["exo", "reward_aware_rpo"])
def test_near_their_optimum_losses_keep_their_digits_in_float32(name: str) -> None:
    trials = near_optimum(name)
    assert trials
    for one in trials:
        assert keeps_its_digits(reference(name), one), str(one)
