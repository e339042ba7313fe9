"""MPO, Wang et al. 2024 (arXiv 2411.10442): DPO, BCO on pairs and the likelihood of the chosen response, weighted."""

from common import logsigmoid, mean, ratio, total
from mpmath import fsum


def loss(examples, *, beta, preference_weight, quality_weight, generation_weight, nll, **state):
    delta = state["bco_pair/delta"]

    def reward(completion):
        return beta * ratio(completion)

    preference = mean(-logsigmoid(reward(ex.chosen) - reward(ex.rejected)) for ex in examples)
    quality = mean(-logsigmoid(reward(ex.chosen) - delta) - logsigmoid(delta - reward(ex.rejected)) for ex in examples)
    if nll == "token":
        tokens = sum(len(ex.chosen.logps) for ex in examples)
        generation = -fsum(total(ex.chosen) for ex in examples) / tokens
    else:
        generation = mean(-total(ex.chosen) / len(ex.chosen.logps) for ex in examples)
    return preference_weight * preference + quality_weight * quality + generation_weight * generation
