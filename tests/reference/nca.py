"""NCA, Chen et al. 2024 (arXiv 2402.05369): soft positives, and every one of the K completions as noise once."""

from common import logsigmoid, mean, ratio
from mpmath import exp, fsum
from ranked import logsoftmax


def loss(examples, *, beta, alpha):
    def one(ex):
        target = [exp(t) for t in logsoftmax([score / alpha for score in ex.scores])]
        r = [beta * ratio(completion) for completion in ex.completions]
        positive = fsum(t * logsigmoid(x) for t, x in zip(target, r, strict=True))
        return -positive - mean(logsigmoid(-x) for x in r)

    return mean(one(ex) for ex in examples)
