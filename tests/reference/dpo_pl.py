"""Plackett–Luce DPO, Rafailov et al. 2023 (arXiv 2305.18290, appendix): each completion against those below it."""

from common import mean, ratio
from mpmath import exp, fsum, log
from ranked import standing


def loss(examples, *, beta):
    def one(ex):
        rank = standing(ex)
        s = [ratio(completion) for completion in ex.completions]
        factors = []
        for k in range(len(s)):
            rivals = [j for j in range(len(s)) if j == k or rank[j] < rank[k]]
            # exp(β s_k) / Σ_j exp(β s_j), divided through by the numerator.
            factors.append(1 / fsum(exp(beta * (s[j] - s[k])) for j in rivals))
        return -fsum(log(factor) for factor in factors)

    return mean(one(ex) for ex in examples)
