"""XPO, Xie et al. 2024 (arXiv 2405.21046): DPO plus α times the log-likelihood of the reference's own sample."""

from common import logsigmoid, mean, ratio, total


def loss(examples, *, alpha, beta):
    def one(ex):
        sampled = ex.chosen if ex.sampled_by_reference else ex.rejected
        return -logsigmoid(beta * (ratio(ex.chosen) - ratio(ex.rejected))) + alpha * total(sampled)

    return mean(one(ex) for ex in examples)
