"""Hinge-norm of RSO, Liu et al. 2023 (arXiv 2309.06657), eq. 10."""

from common import mean, ref_total, total


def loss(examples, *, gamma):
    def one(ex):
        policy = total(ex.chosen) - total(ex.rejected)
        reference = ref_total(ex.chosen) - ref_total(ex.rejected)
        return max(0, 1 - gamma * (policy - reference))

    return mean(one(ex) for ex in examples)
