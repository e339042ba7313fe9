"""PRO, Song et al. 2023 (arXiv 2306.17492): one softmax for each rank, with temperatures from the gaps of rewards."""

from common import average, mean, total
from mpmath import exp, fsum, log
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
            temperature[k] = min(temperature.values())
            # Divided through by the numerator.
            own = m[k] / temperature[k]
            ranking.append(-log(1 / fsum(exp(m[i] / temperature[i] - own) for i in temperature)))
        best = ex.completions[order.index(max(order))]
        return fsum(ranking) - sft_weight * (len(m) - 1) ** 2 * total(best)

    return mean(one(ex) for ex in examples)
