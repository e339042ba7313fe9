"""Recipes and tuning ranges as data."""

import pytest

from prefopt.core.errors import UsageError
from prefopt.core.recipe import Range, Recipe


def test_the_rate_of_an_adapter_is_ten_times_that_of_all_weights_as_one_would_write_it() -> None:
    assert Recipe(full=1e-6).adapter == 1e-5
    assert Recipe(full=7e-7).adapter == 7e-6
    assert Recipe(full=1e-6, adapter=3e-5).adapter == 3e-5


def test_rates_are_tuned_around_the_recipes_own_or_in_the_published_range() -> None:
    assert Recipe(full=1e-6).rates(trains_adapter=False) == Range(2e-7, 5e-6)
    assert Recipe(full=1e-6).rates(trains_adapter=True) == Range(2e-6, 5e-5)
    published = Recipe(full=6e-7, tune=Range(3e-7, 1e-6, "a table"))
    assert published.rates(trains_adapter=True) == Range(3e-6, 1e-5, "a table")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (2.0, 1.0)])
def test_a_range_without_a_logarithm_is_refused(low: float, high: float) -> None:
    with pytest.raises(UsageError, match="0 < low < high"):
        Range(low, high)


def test_a_step_is_whole_micro_batches() -> None:
    with pytest.raises(UsageError, match=r"batch=10, micro_batch=4"):
        Recipe(full=1e-6, batch=10)


def test_a_loss_that_compares_its_examples_gets_its_step_as_one_micro_batch() -> None:
    coupled = Recipe(full=1e-6, batch=64, reason="kept").coupled()
    assert (coupled.batch, coupled.micro_batch, coupled.reason) == (16, 16, "kept")
    own = Recipe(full=1e-6, batch=8, micro_batch=8)
    assert own.coupled() is own
