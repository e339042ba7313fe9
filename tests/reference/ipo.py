"""IPO, Azar et al. 2023 (arXiv 2310.12036), eq. 17; with ``average`` the per-token form."""

from common import mean, ratio
from mpmath import mpf


def loss(examples, *, tau, average):
    def score(completion):
        return ratio(completion) / (len(completion.logps) if average else 1)

    target = 1 / (2 * mpf(tau))
    return mean((score(ex.chosen) - score(ex.rejected) - target) ** 2 for ex in examples)
