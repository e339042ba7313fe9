"""NCA on pairs, Chen et al. 2024 (arXiv 2402.05369): the chosen response against noise of equal parts of both."""

from common import logsigmoid, mean, ratio


def loss(examples, *, beta):
    def one(ex):
        data = logsigmoid(beta * ratio(ex.chosen))
        noise = [logsigmoid(-beta * ratio(y)) for y in (ex.chosen, ex.rejected)]
        return -data - mean(noise)

    return mean(one(ex) for ex in examples)
