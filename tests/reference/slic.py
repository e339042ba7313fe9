"""SLiC-HF, Zhao et al. 2023 (arXiv 2305.10425), as eq. 1 of RSO (arXiv 2309.06657) prints it, with y_ref = y_w."""

from common import mean, total


def loss(examples, *, delta, lam):
    return mean(max(0, delta - total(ex.chosen) + total(ex.rejected)) - lam * total(ex.chosen) for ex in examples)
