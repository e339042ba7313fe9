"""ORPO, Hong et al. 2024 (arXiv 2403.07691), eq. 3-7: odds(y) = P/(1 − P) with P the geometric mean per token."""

from common import average, logsigmoid, mean, total
from mpmath import exp, expm1, fsum, log


def loss(examples, *, lam, nll):
    def log_odds(completion):
        m = average(completion)
        return log(exp(m) / -expm1(m))

    odds_ratio = mean(-logsigmoid(log_odds(ex.chosen) - log_odds(ex.rejected)) for ex in examples)
    if nll == "token":
        supervised = -fsum(total(ex.chosen) for ex in examples) / sum(len(ex.chosen.logps) for ex in examples)
    else:
        supervised = mean(-average(ex.chosen) for ex in examples)
    return supervised + lam * odds_ratio
