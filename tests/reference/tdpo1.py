"""TDPO1, Zeng et al. 2024 (arXiv 2404.11999): DPO with the difference of sequential forward KLs inside."""

from common import logsigmoid, mean, ratio
from mpmath import fsum


def loss(examples, *, beta):
    def one(ex):
        h = ratio(ex.chosen) - ratio(ex.rejected)
        return -logsigmoid(beta * (h - (fsum(ex.rejected.kl) - fsum(ex.chosen.kl))))

    return mean(one(ex) for ex in examples)
