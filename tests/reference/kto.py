"""KTO, Ethayarajh et al. 2024 (arXiv 2402.01306), eq. 8: mean of λ_y − v(x, y), the reference point z0 given."""

from common import mean, ratio, sigmoid


def loss(examples, *, beta, desirable_weight, undesirable_weight, z0):
    def one(ex):
        r = ratio(ex.completion)
        # λ − λ σ(x) is λ σ(−x); the difference would lose all digits for a large x.
        if ex.desirable:
            return desirable_weight * sigmoid(-beta * (r - z0))
        return undesirable_weight * sigmoid(-beta * (z0 - r))

    return mean(one(ex) for ex in examples)
