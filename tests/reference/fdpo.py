"""f-DPO, Wang et al. 2023 (arXiv 2309.16240): DPO with f'(π/π_ref) in place of its logarithm.

f' as in the paper's table of divergences; additive constants of f' drop out of the difference.
"""

from common import logsigmoid, mean, ratio
from mpmath import exp, log, log1p


def loss(examples, *, beta, divergence, alpha, **_):
    def derivative(completion):
        s = ratio(completion)
        if divergence == "reverse_kl":
            return s + 1
        if divergence == "forward_kl":
            return -exp(-s)
        if divergence == "alpha":
            return (1 - exp(-alpha * s)) / alpha
        # 2u/(1 + u) with u = e^s is 2/(1 + e^−s).
        return log(2) - log1p(exp(-s))

    return mean(-logsigmoid(beta * (derivative(ex.chosen) - derivative(ex.rejected))) for ex in examples)


def domain(examples, *, divergence, alpha, max_exponent, **_):
    """Where no exponent is cut."""
    scale = {"forward_kl": 1, "alpha": alpha}.get(divergence, 0)
    return all(-scale * ratio(y) <= max_exponent for ex in examples for y in (ex.chosen, ex.rejected))
