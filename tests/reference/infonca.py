"""InfoNCA, Chen et al. 2024 (arXiv 2402.05369): cross-entropy of the softmax of rewards under that of log-ratios."""

from common import mean, ratio
from mpmath import exp, fsum
from ranked import logsoftmax


def loss(examples, *, beta, alpha):
    def one(ex):
        target = logsoftmax([score / alpha for score in ex.scores])
        policy = logsoftmax([beta * ratio(completion) for completion in ex.completions])
        return -fsum(exp(t) * p for t, p in zip(target, policy, strict=True))

    return mean(one(ex) for ex in examples)
