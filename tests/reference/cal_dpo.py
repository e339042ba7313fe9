"""Cal-DPO, Xiao et al. 2024 (arXiv 2412.14516): a logistic loss without β, and squares around ±1/(2β)."""

from common import logsigmoid, mean, ratio
from mpmath import mpf


def loss(examples, *, beta, weight):
    target = 1 / (2 * mpf(beta))

    def one(ex):
        h_w, h_l = ratio(ex.chosen), ratio(ex.rejected)
        return -logsigmoid(h_w - h_l) + weight * ((h_w - target) ** 2 + (h_l + target) ** 2)

    return mean(one(ex) for ex in examples)
