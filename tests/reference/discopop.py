"""DiscoPOP, Lu et al. 2024 (arXiv 2406.08414), eq. 5: logistic and exponential loss, blended by a sigmoid."""

from common import logsigmoid, mean, ratio, sigmoid
from mpmath import exp


def loss(examples, *, beta, tau):
    def one(ex):
        rho = beta * (ratio(ex.chosen) - ratio(ex.rejected))
        logistic, exponential = -logsigmoid(rho), exp(-rho)
        return sigmoid(-rho / tau) * logistic + sigmoid(rho / tau) * exponential

    return mean(one(ex) for ex in examples)
