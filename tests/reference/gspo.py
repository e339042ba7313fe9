"""GSPO, Zheng et al. 2025 (arXiv 2507.18071): the geometric mean of the ratios of a completion, clipped."""

from common import mean
from mpmath import fsum
from policy_gradient import bounded_exp, penalties, surrogate


def loss(examples, *, epsilon_low, epsilon_high, beta, kl, kl_ratio):
    def one(ex):
        length = len(ex.completion.logps)
        s = bounded_exp((fsum(ex.completion.logps) - fsum(ex.old_logps)) / length)
        a = fsum(ex.advantages) / length
        return surrogate(s, a, epsilon_low, epsilon_high) + fsum(penalties(ex, beta, kl, kl_ratio)) / length

    return mean(one(ex) for ex in examples)
