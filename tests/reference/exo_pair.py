"""EXO on pairs, Ji et al. 2024 (arXiv 2402.00856), eq. 16: KL from the policy's normalised ratios to (1 − ε, ε).

``normalised=False`` has the log-targets of the authors' code, 0 for the chosen response instead of log(1 − ε).
"""

from common import logsigmoid, mean, ratio
from mpmath import exp, log


def loss(examples, *, beta, label_smoothing, normalised):
    log_targets = [log(1 - label_smoothing) if normalised else 0, log(label_smoothing)]

    def one(ex):
        gap = beta * (ratio(ex.chosen) - ratio(ex.rejected))
        log_policy = [logsigmoid(gap), logsigmoid(-gap)]
        return sum(exp(p) * (p - q) for p, q in zip(log_policy, log_targets, strict=True))

    return mean(one(ex) for ex in examples)
