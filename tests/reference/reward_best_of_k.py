"""Ziegler et al. 2019, arXiv 1909.08593: softmax cross-entropy on the answer that was picked.

Tied bests do not compete: each is compared with itself and the answers below it, and the mean over them counts.
"""

from common import mean
from mpmath import mpf
from ranked import logsoftmax, standing


def loss(examples):
    def one(ex):
        rank = standing(ex)
        rewards = [completion.rewards for completion in ex.completions]
        below = [reward for reward, place in zip(rewards, rank, strict=True) if place < max(rank)]
        best = [reward for reward, place in zip(rewards, rank, strict=True) if place == max(rank)]
        if not below:
            return mpf(0)
        return mean(-logsoftmax([reward, *below])[0] for reward in best)

    return mean(one(ex) for ex in examples)
