"""DPO-Positive, Pal et al. 2024 (arXiv 2402.13228), eq. 3."""

from common import logsigmoid, mean, ratio, ref_total, total


def loss(examples, *, beta, lam):
    def one(ex):
        penalty = max(0, ref_total(ex.chosen) - total(ex.chosen))
        return -logsigmoid(beta * (ratio(ex.chosen) - ratio(ex.rejected) - lam * penalty))

    return mean(one(ex) for ex in examples)
