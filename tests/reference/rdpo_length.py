"""R-DPO, Park et al. 2024 (arXiv 2403.19159): preferences explained by r = β s + α len."""

from common import logsigmoid, mean, ratio


def loss(examples, *, beta, alpha):
    def explained(completion):
        return beta * ratio(completion) + alpha * len(completion.logps)

    return mean(-logsigmoid(explained(ex.chosen) - explained(ex.rejected)) for ex in examples)
