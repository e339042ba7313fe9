"""Squared error of the reward to the rating, or of a difference of rewards to that of the ratings."""

from itertools import combinations

from common import mean
from mpmath import mpf


def loss(examples, *, target):
    def errors(ex):
        return [one.rewards - score for one, score in zip(ex.completions, ex.scores, strict=True)]

    if target == "rating":
        return mean(error**2 for ex in examples for error in errors(ex))
    pairs = [[(a - b) ** 2 for a, b in combinations(errors(ex), 2)] for ex in examples]
    return mean(mean(one) if one else mpf(0) for one in pairs)
