"""SamPO, Lu et al. 2024 (arXiv 2406.10957): DPO over as many random tokens of each response as the shorter one has."""

from common import logsigmoid, lot, mean
from mpmath import fsum


def loss(examples, *, beta, draw, **state):
    def sampled(ex, completion, side, size):
        tokens = list(zip(completion.logps, completion.ref_logps, strict=True))
        drawn = sorted(range(len(tokens)), key=lambda t: lot(ex.id, int(draw), side, t))[:size]
        return fsum(tokens[t][0] - tokens[t][1] for t in drawn)

    def one(ex):
        size = min(len(ex.chosen.logps), len(ex.rejected.logps))
        return -logsigmoid(beta * (sampled(ex, ex.chosen, 0, size) - sampled(ex, ex.rejected, 1, size)))

    return mean(one(ex) for ex in examples)
