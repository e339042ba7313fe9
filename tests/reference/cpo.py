"""CPO, Xu et al. 2024 (arXiv 2401.08417), eq. 3: DPO with a uniform reference, plus a likelihood term."""

from common import average, logsigmoid, mean, total
from mpmath import fsum


def loss(examples, *, beta, alpha, nll):
    prefer = mean(-logsigmoid(beta * total(ex.chosen) - beta * total(ex.rejected)) for ex in examples)
    summed = -fsum(total(ex.chosen) for ex in examples)
    likelihood = {
        "token": summed / sum(len(ex.chosen.logps) for ex in examples),
        "sequence": -mean(average(ex.chosen) for ex in examples),
        "sum": summed / len(examples),
    }[nll]
    return prefer + alpha * likelihood
