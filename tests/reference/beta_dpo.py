"""β-DPO, Wu et al. 2024 (arXiv 2407.08639): DPO over the pairs that are not dropped, the dynamic β given."""

from common import logsigmoid, mean, ratio


def loss(examples, *, beta, dropped, **given):
    kept = [ex for ex in examples if ex.id not in dropped]
    return mean(-logsigmoid(beta * (ratio(ex.chosen) - ratio(ex.rejected))) for ex in kept)
