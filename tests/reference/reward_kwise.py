"""InstructGPT, arXiv 2203.02155, eq. 1: the mean of −log σ(r_i − r_j) over the pairs that a ranking states."""

from itertools import permutations

from common import logsigmoid, mean
from mpmath import mpf
from ranked import standing


def loss(examples):
    def one(ex):
        rank = standing(ex)
        pairs = [(i, j) for i, j in permutations(range(len(rank)), 2) if rank[i] > rank[j]]
        if not pairs:
            return mpf(0)
        return mean(-logsigmoid(ex.completions[i].rewards - ex.completions[j].rewards) for i, j in pairs)

    return mean(one(ex) for ex in examples)
