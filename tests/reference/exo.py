"""EXO, Ji et al. 2024 (arXiv 2402.00856): KL of the softmax of log-ratios to the softmax of rewards."""

from common import mean, ratio
from mpmath import exp, fsum
from ranked import logsoftmax


def loss(examples, *, beta, beta_reward):
    def one(ex):
        p = logsoftmax([beta * ratio(completion) for completion in ex.completions])
        q = logsoftmax([score / beta_reward for score in ex.scores])
        return fsum(exp(a) * (a - b) for a, b in zip(p, q, strict=True))

    return mean(one(ex) for ex in examples)
