"""DPO, Rafailov et al. 2023 (arXiv 2305.18290), eq. 7."""

from common import logsigmoid, mean, ratio


def loss(examples, *, beta):
    return mean(-logsigmoid(beta * ratio(ex.chosen) - beta * ratio(ex.rejected)) for ex in examples)
