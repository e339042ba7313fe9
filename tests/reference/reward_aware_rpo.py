"""Reward-aware preference optimization, Nemotron-4 340B 2024 (arXiv 2406.11704).

A distance between the policy's margin a = β h and the margin of the rewards b = η (r_w − r_l): a KL between two coins,
or a square.
"""

from common import logsigmoid, mean, ratio
from mpmath import exp


def loss(examples, *, beta, eta, distance):
    def kl(p, q):
        return sum(exp(logsigmoid(x)) * (logsigmoid(x) - logsigmoid(y)) for x, y in ((p, q), (-p, -q)))

    def one(ex):
        a = beta * (ratio(ex.chosen) - ratio(ex.rejected))
        b = eta * (ex.chosen_score - ex.rejected_score)
        return {"backward_kl": kl(b, a), "forward_kl": kl(a, b), "squared": (a - b) ** 2}[distance]

    return mean(one(ex) for ex in examples)
