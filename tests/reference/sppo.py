"""SPPO, Wu et al. 2024 (arXiv 2405.00675): regress s(y) to η(P(y ≻ π_t) − ½), η = 1/β, for both responses."""

from common import mean, ratio
from mpmath import mpf


def loss(examples, *, beta, win_rate, halve):
    eta, half = 1 / mpf(beta), mpf(1) / 2

    def one(ex):
        wins = (ex.chosen_score, ex.rejected_score) if win_rate == "each" else (ex.preference, 1 - ex.preference)
        squares = [(ratio(y) - eta * (p - half)) ** 2 for y, p in zip((ex.chosen, ex.rejected), wins, strict=True)]
        return sum(squares) / (2 if halve else 1)

    return mean(one(ex) for ex in examples)
