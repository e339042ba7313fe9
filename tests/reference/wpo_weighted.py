"""WPO's weights (Zhou et al. 2024, arXiv 2406.11827) on IPO, the default base."""

from common import mean, ratio
from mpmath import mpf
from wpo import pair_weight


def loss(examples, *, base, clamp):
    assert base == "ipo"
    tau = mpf(0.1)
    return mean(
        pair_weight(ex, clamp) * (ratio(ex.chosen) - ratio(ex.rejected) - 1 / (2 * tau)) ** 2 for ex in examples
    )
