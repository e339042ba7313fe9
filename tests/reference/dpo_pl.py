"""Plackett–Luce DPO, Rafailov et al. 2023 (arXiv 2305.18290, appendix): each completion against those below it."""

from common import mean, ratio
from mpmath import exp, fsum, log1p
from ranked import standing


def loss(examples, *, beta):
    def one(ex):
        rank = standing(ex)
        s = [ratio(completion) for completion in ex.completions]
        # exp(β s_k) / Σ_j exp(β s_j), divided through by the numerator, is 1/(1 + the sum over those below).
        below = [[j for j in range(len(s)) if rank[j] < rank[k]] for k in range(len(s))]
        return fsum(log1p(fsum(exp(beta * (s[j] - s[k])) for j in below[k])) for k in range(len(s)))

    return mean(one(ex) for ex in examples)
