"""CPO-SimPO: eq. 6 of SimPO (arXiv 2405.14734) with the likelihood term of CPO (arXiv 2401.08417)."""

from common import average, logsigmoid, mean, total
from mpmath import fsum


def loss(examples, *, beta, gamma, alpha, nll):
    simpo = mean(-logsigmoid(beta * (average(ex.chosen) - average(ex.rejected)) - gamma) for ex in examples)
    if nll == "token":
        likelihood = -fsum(total(ex.chosen) for ex in examples) / sum(len(ex.chosen.logps) for ex in examples)
    else:
        likelihood = -mean(average(ex.chosen) for ex in examples)
    return simpo + alpha * likelihood
