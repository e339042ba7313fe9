"""APO-down, D'Oosterlinck et al. 2024 (arXiv 2408.06266), eq. 8: σ(r_w) − σ(r_w − r_l), with 1 added."""

from common import mean, ratio, sigmoid


def loss(examples, *, beta):
    def one(ex):
        r_w, r_l = beta * ratio(ex.chosen), beta * ratio(ex.rejected)
        return sigmoid(r_w) + sigmoid(r_l - r_w)

    return mean(one(ex) for ex in examples)
