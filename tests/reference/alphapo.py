"""AlphaPO, Gupta et al. 2025 (arXiv 2501.03884): SimPO with the reward (1 − P^−α)/α, P the mean probability."""

from common import average, logsigmoid, mean
from mpmath import expm1


def loss(examples, *, alpha, beta, gamma, **_):
    def reward(completion):
        m = average(completion)
        # P^−α is e^(−α m); the limit for α → 0 is m itself.
        return m if alpha == 0 else -expm1(-alpha * m) / alpha

    return mean(-logsigmoid(beta * (reward(ex.chosen) - reward(ex.rejected)) - gamma) for ex in examples)


def domain(examples, *, alpha, max_exponent, **_):
    """Where no exponent is cut."""
    return all(-alpha * average(y) <= max_exponent for ex in examples for y in (ex.chosen, ex.rejected))
