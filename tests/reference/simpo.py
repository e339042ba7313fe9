"""SimPO, Meng et al. 2024 (arXiv 2405.14734), eq. 6."""

from common import logsigmoid, mean, total


def loss(examples, *, beta, gamma):
    def reward(completion):
        return beta / len(completion.logps) * total(completion)

    return mean(-logsigmoid(reward(ex.chosen) - reward(ex.rejected) - gamma) for ex in examples)
