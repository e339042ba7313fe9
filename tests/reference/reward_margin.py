"""Llama 2, arXiv 2307.09288, eq. 2: −log σ(r_w − r_l − m)."""

from common import logsigmoid, mean


def loss(examples):
    return mean(-logsigmoid(ex.chosen.rewards - ex.rejected.rewards - ex.rated_margin) for ex in examples)
