"""EXO, Ji et al. 2024 (arXiv 2402.00856): KL of the softmax of log-ratios to the softmax of rewards."""

from common import mean, ratio
from mpmath import chop, exp, fsum
from ranked import logsoftmax


def loss(examples, *, beta, beta_reward):
    def one(ex):
        p = logsoftmax([beta * ratio(completion) for completion in ex.completions])
        q = logsoftmax([score / beta_reward for score in ex.scores])
        # Where p is q, 50 digits leave 1e-50 of it.
        return chop(fsum(exp(a) * (a - b) for a, b in zip(p, q, strict=True)), tol=1e-45)

    return mean(one(ex) for ex in examples)
