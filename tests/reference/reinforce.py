"""REINFORCE, Williams 1992: −A log π, summed over tokens and averaged over completions."""

from common import mean
from policy_gradient import both, sums


def loss(examples, *, beta, kl, kl_ratio):
    def tokens(ex):
        return both(ex, [-a * x for a, x in zip(ex.advantages, ex.completion.logps, strict=True)], beta, kl, kl_ratio)

    return mean(sums(examples, tokens))
