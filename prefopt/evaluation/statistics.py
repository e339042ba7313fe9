"""Means and shares with their uncertainty, and correlations.

The distributions are scipy's. `scipy.special` has the quantiles that `scipy.stats` uses. The latter takes a second to
import, so that only the functions that need it import it.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, Real
from scipy.special import ndtri, stdtrit

from prefopt.core.errors import UsageError

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its uncertainty, all in the unit of the quantity.

    Attributes:
        mean: over prompts (or pairs) and training seeds.
        low, high: 95 % t-interval over prompts (or pairs), given these training runs.
        seed_low, seed_high: 95 % t-interval over training seeds, given these prompts; None for a single seed.
    """

    mean: float
    low: float
    high: float
    seed_low: float | None = None
    seed_high: float | None = None

    @classmethod
    def of(cls, values: Float[np.ndarray, "seeds units"]) -> Self:
        """From one value per training seed and prompt (or pair).

        Raises:
            UsageError: fewer than two prompts or pairs, which give no interval.
        """
        seeds, units = values.shape
        if units < 2:
            raise UsageError(f"an interval needs at least 2 prompts and 2 pairs to average over, not {units}.")
        over_seeds = t_interval(values.mean(axis=1)) if seeds > 1 else (None, None)
        return cls(float(values.mean()), *t_interval(values.mean(axis=0)), *over_seeds)

    def above(self, other: "Estimate") -> bool:
        """Whether this interval over prompts lies wholly above the other's."""
        return self.low > other.high


def t_interval(values: Float[np.ndarray, " n"], level: float = LEVEL) -> tuple[float, float]:
    """The t-interval of the mean of n ≥ 2 independent values."""
    half = t_quantile(len(values) - 1, level) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """The t with P(\\|T\\| ≤ t) = level for Student's distribution with that many degrees of freedom."""
    return float(stdtrit(degrees, (1 + level) / 2))


def wilson_interval(share: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of a share of n ≥ 1 independent observations, inside [0, 1].

    The formula is written out because `scipy.stats.binomtest` takes whole numbers of successes, and a tie is half a
    success.
    """
    z = float(ndtri((1 + level) / 2))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def pearson(a: Real[np.ndarray, " n"], b: Real[np.ndarray, " n"]) -> float | None:
    """The linear correlation; None where one of the two is constant."""
    from scipy.stats import pearsonr

    return None if _constant(a) or _constant(b) else float(pearsonr(a, b).statistic)


def spearman(a: Real[np.ndarray, " n"], b: Real[np.ndarray, " n"]) -> float | None:
    """The rank correlation, in which ties share the mean of their ranks; None where one of the two is constant."""
    from scipy.stats import spearmanr

    return None if _constant(a) or _constant(b) else float(spearmanr(a, b).statistic)


def _constant(values: Real[np.ndarray, " n"]) -> bool:
    return bool((values == values[0]).all())
