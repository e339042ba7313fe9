"""REBEL, Gao et al. 2024 (arXiv 2404.16767): regress the difference of log-ratios over η to that of the rewards.

``eta_on_rewards`` is the form of the authors' code, η² times the paper's.
"""

from common import mean, ratio
from mpmath import mpf


def loss(examples, *, eta, eta_on_rewards):
    def one(ex):
        predicted = (ratio(ex.chosen) - ratio(ex.rejected)) / mpf(eta)
        return (predicted - (ex.chosen_score - ex.rejected_score)) ** 2

    paper = mean(one(ex) for ex in examples)
    return eta**2 * paper if eta_on_rewards else paper
