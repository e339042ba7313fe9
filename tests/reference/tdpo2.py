"""TDPO2, Zeng et al. 2024 (arXiv 2404.11999): TDPO1 with weight α, the KL of the chosen response a constant."""

from common import logsigmoid, mean, ratio
from mpmath import fsum


def loss(examples, *, beta, alpha):
    def one(ex):
        h = ratio(ex.chosen) - ratio(ex.rejected)
        return -logsigmoid(beta * (h - alpha * (fsum(ex.rejected.kl) - fsum(ex.chosen.detached.kl))))

    return mean(one(ex) for ex in examples)
