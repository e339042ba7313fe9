"""Robust DPO, Chowdhury et al. 2024 (arXiv 2403.00409): the unbiased estimate of DPO under flips with rate ε."""

from common import logsigmoid, mean, ratio


def loss(examples, *, beta, label_smoothing):
    def dpo(winner, loser):
        return -logsigmoid(beta * ratio(winner) - beta * ratio(loser))

    kept = mean(dpo(ex.chosen, ex.rejected) for ex in examples)
    flipped = mean(dpo(ex.rejected, ex.chosen) for ex in examples)
    return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)
