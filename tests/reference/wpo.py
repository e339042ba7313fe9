"""WPO, Zhou et al. 2024 (arXiv 2406.11827), eq. 2: DPO, each pair weighted by the policy's likelihood of it."""

from common import logsigmoid, mean, ratio
from mpmath import exp


def weight(completion):
    """w(y), a constant."""
    tokens = zip(completion.detached.logps, completion.detached.log_sum_p2, strict=True)
    return exp(mean(logp - log_sum_p2 for logp, log_sum_p2 in tokens))


def pair_weight(ex, clamp):
    product = weight(ex.chosen) * weight(ex.rejected)
    return min(product, 1) if clamp else product


def loss(examples, *, beta, clamp):
    return mean(-pair_weight(ex, clamp) * logsigmoid(beta * (ratio(ex.chosen) - ratio(ex.rejected))) for ex in examples)
