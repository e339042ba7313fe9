"""RRHF, Yuan et al. 2023 (arXiv 2304.05302): pairs in the wrong order, and the likelihood of the best completion."""

from common import mean, total
from mpmath import fsum, mpf
from ranked import standing


def loss(examples, *, length_exponent, rank_weight, nll):
    def ranking(ex):
        rank = standing(ex)
        p = [total(completion) / mpf(len(completion.logps)) ** length_exponent for completion in ex.completions]
        places = range(len(p))
        return fsum(max(mpf(0), p[i] - p[j]) for i in places for j in places if rank[i] < rank[j])

    def best(ex):
        rank = standing(ex)
        return ex.completions[rank.index(max(rank))]

    likelihood = {
        "sum": lambda: mean(-total(best(ex)) for ex in examples),
        "sequence": lambda: mean(-total(best(ex)) / len(best(ex).logps) for ex in examples),
        "token": lambda: -fsum(total(best(ex)) for ex in examples) / sum(len(best(ex).logps) for ex in examples),
    }[nll]()
    return rank_weight * mean(ranking(ex) for ex in examples) + likelihood
