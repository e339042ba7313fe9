"""APO-zero, D'Oosterlinck et al. 2024 (arXiv 2408.06266), eq. 7: −σ(r_w) + σ(r_l), with 1 added so that it is ≥ 0."""

from common import mean, ratio, sigmoid


def loss(examples, *, beta):
    # 1 − σ(x) as σ(−x): the difference would lose all digits for a large x.
    return mean(sigmoid(-beta * ratio(ex.chosen)) + sigmoid(beta * ratio(ex.rejected)) for ex in examples)
