"""Iterative RPO, Pang et al. 2024 (arXiv 2404.19733), eq. 1: DPO + α · NLL, the NLL divided by the length.

``nll="token"`` divides the likelihood of the whole step by its number of chosen tokens, as TRL does.
"""

from common import average, logsigmoid, mean, ratio, total
from mpmath import fsum


def loss(examples, *, beta, alpha, nll):
    dpo = mean(-logsigmoid(beta * (ratio(ex.chosen) - ratio(ex.rejected))) for ex in examples)
    if nll == "token":
        likelihood = fsum(total(ex.chosen) for ex in examples) / sum(len(ex.chosen.logps) for ex in examples)
    else:
        likelihood = mean(average(ex.chosen) for ex in examples)
    return dpo - alpha * likelihood
