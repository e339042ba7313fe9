"""PRO, Song et al. 2023 (arXiv 2306.17492): one softmax for each rank, with temperatures from the gaps of rewards."""

from common import average, mean, total
from mpmath import exp, fsum, log1p
from ranked import standing


def loss(examples, *, sft_weight):
    def one(ex):
        order = standing(ex)
        m = [average(completion) for completion in ex.completions]
        ranking = []
        for k in range(len(m)):
            below = [i for i in range(len(m)) if order[i] < order[k]]
            if not below:
                continue
            temperature = {i: 1 / (ex.scores[k] - ex.scores[i]) for i in below}
            # The numerator has the least temperature; divided through by it, the fraction is 1/(1 + the rest).
            own = m[k] / min(temperature.values())
            ranking.append(log1p(fsum(exp(m[i] / temperature[i] - own) for i in below)))
        best = ex.completions[order.index(max(order))]
        return fsum(ranking) - sft_weight * (len(m) - 1) ** 2 * total(best)

    return mean(one(ex) for ex in examples)
