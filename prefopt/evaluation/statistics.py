"""Means with their uncertainty."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from jaxtyping import Float

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


@lru_cache
def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """The t with P(\\|T\\| ≤ t) = level for Student's distribution with that many degrees of freedom.

    With T = √ν · tan θ the density of θ is proportional to cos^(ν-1) θ, which is integrated on a grid.
    """
    theta = np.linspace(0.0, math.pi / 2, 200_001)
    density = np.cos(theta) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(math.sqrt(degrees) * np.tan(np.interp(level, below / below[-1], theta)))
