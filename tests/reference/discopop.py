"""DiscoPOP, Lu et al. 2024 (arXiv 2406.08414), eq. 5: logistic and exponential loss, blended by a sigmoid."""

from common import logsigmoid, mean, ratio, sigmoid
from mpmath import exp

# ∂L/∂z at z = 0 is (1 − log 2)/(4τ) − 3/4: two numbers of order 1 that leave 0.017 at τ = 0.1 and nothing at
# τ = 0.1023. Scaling by |z ∂²L/∂z²| alone, which is 0 there, would ask for digits that τ does not have in float32.
ROUNDED = ("tau",)


def loss(examples, *, beta, tau):
    def one(ex):
        rho = beta * (ratio(ex.chosen) - ratio(ex.rejected))
        logistic, exponential = -logsigmoid(rho), exp(-rho)
        return sigmoid(-rho / tau) * logistic + sigmoid(rho / tau) * exponential

    return mean(one(ex) for ex in examples)
