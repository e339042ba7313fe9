"""BCO, Jung et al. 2024 (arXiv 2404.04656): a classifier of desirable and undesirable rewards, the shift δ given."""

from common import logsigmoid, mean, ratio


def loss(examples, *, beta, average, delta, **state):
    good = [-logsigmoid(beta * ratio(ex.completion) - delta) for ex in examples if ex.desirable]
    bad = [-logsigmoid(-(beta * ratio(ex.completion) - delta)) for ex in examples if not ex.desirable]
    if average == "row":
        return mean(good + bad)
    return sum(mean(rows) for rows in (good, bad) if rows)
