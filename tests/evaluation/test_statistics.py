"""Intervals and correlations against tables, textbooks, scipy, and what was computed by hand before."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from prefopt.core.errors import UsageError
from prefopt.evaluation.statistics import Estimate, pearson, spearman, t_interval, t_quantile, wilson_interval


@pytest.mark.parametrize(
    ("degrees", "level", "table"),
    [
        (1, 0.95, 12.7062),
        (2, 0.95, 4.3027),
        (9, 0.95, 2.2622),
        (199, 0.95, 1.9720),
        (9999, 0.95, 1.9602),
        (5, 0.5, 0.7267),
    ],
)
def test_t_quantiles_are_those_of_the_tables(degrees: int, level: float, table: float) -> None:
    assert t_quantile(degrees, level) == pytest.approx(table, abs=1e-4)


def test_t_intervals_cover_the_mean_as_often_as_they_say() -> None:
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(2000, 4))
    covered = np.mean([low <= 3.0 <= high for low, high in map(t_interval, draws)])
    assert 0.935 < covered < 0.965


def test_an_estimate_over_seeds_keeps_the_two_intervals_apart() -> None:
    values = np.array([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    estimate = Estimate.of(values)
    assert estimate.mean == 1.5
    assert (estimate.high - estimate.low) / 2 == pytest.approx(4.3027 * 1.0 / math.sqrt(3), rel=1e-4)
    assert (estimate.seed_high - estimate.seed_low) / 2 == pytest.approx(
        12.7062 * math.sqrt(0.5) / math.sqrt(2), rel=1e-4
    )
    assert Estimate.of(values[:1]).seed_low is None
    with pytest.raises(UsageError, match="at least 2"):
        Estimate.of(values[:, :1])


def test_above_means_that_intervals_are_apart() -> None:
    assert Estimate(2.0, 1.5, 2.5).above(Estimate(1.0, 0.6, 1.4))
    assert not Estimate(2.0, 1.4, 2.6).above(Estimate(1.0, 0.5, 1.5))


def test_t_quantiles_are_those_that_were_integrated_by_hand_before() -> None:
    """For few degrees, where the integration was right to 1e-9."""
    before = {1: 12.706204736174659, 2: 4.302652729814059, 5: 2.570581835908885, 9: 2.262157163133689}
    for degrees, value in before.items():
        assert t_quantile(degrees) == pytest.approx(value, abs=1e-9)


def test_wilsons_interval_of_whole_numbers_is_scipys_and_stays_inside() -> None:
    for right, n in ((0, 7), (3, 7), (8, 10), (10, 10), (190, 400)):
        known = binomtest(right, n).proportion_ci(0.95, method="wilson")
        assert wilson_interval(right / n, n) == pytest.approx((known.low, known.high), abs=1e-12)
    assert wilson_interval(0.0, 3)[0] == 0.0
    assert wilson_interval(1.0, 3)[1] == 1.0
    # Half a success, for a tie.
    low, high = wilson_interval(0.5, 1)
    assert 0 < low < 0.5 < high < 1


def by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation as it was computed before."""
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def ranks(values: np.ndarray) -> np.ndarray:
    """The ranks as they were computed before; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def test_correlations_are_those_that_were_computed_by_hand_before() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        # Whole numbers, for there to be ties.
        scores, lengths = rng.normal(size=50), rng.integers(1, 12, size=50)
        assert pearson(scores, lengths) == pytest.approx(by_hand(scores, lengths), abs=1e-9)
        assert spearman(scores, lengths) == pytest.approx(by_hand(ranks(scores), ranks(lengths)), abs=1e-9)


def test_correlations() -> None:
    a = np.array([1.0, 2.0, 2.0, 4.0])
    assert pearson(a, 3 - 2 * a) == pytest.approx(-1)
    assert pearson(a, np.ones(4)) is spearman(np.ones(4), a) is None
    assert spearman(a, np.exp(a)) == pytest.approx(1)
    assert pearson(a, np.exp(a)) < 0.99
    assert spearman(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])) == pytest.approx(0.5)
