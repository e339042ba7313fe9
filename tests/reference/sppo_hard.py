"""SPPO with hard labels, Wu et al. 2024 (arXiv 2405.00675): regress s(y) to η(P − ½), P = 1 or 0, η = 1/β."""

from common import mean, ratio
from mpmath import mpf


def loss(examples, *, beta, halve):
    eta = 1 / mpf(beta)

    def one(ex):
        squares = (ratio(ex.chosen) - eta / 2) ** 2 + (ratio(ex.rejected) + eta / 2) ** 2
        return squares / 2 if halve else squares

    return mean(one(ex) for ex in examples)
