"""BCO on pairs, Jung et al. 2024 (arXiv 2404.04656): chosen above the shift δ, rejected below, δ given."""

from common import logsigmoid, mean, ratio


def loss(examples, *, beta, delta, **state):
    return mean(
        -logsigmoid(beta * ratio(ex.chosen) - delta) - logsigmoid(-(beta * ratio(ex.rejected) - delta))
        for ex in examples
    )
