"""Length-normalised DPO: Tülu 3 (arXiv 2411.15124), and "DPO w/ LN" in appendix I of SimPO (arXiv 2405.14734)."""

from common import logsigmoid, mean, ref_total, total


def loss(examples, *, beta):
    def reward(completion):
        return beta / len(completion.logps) * (total(completion) - ref_total(completion))

    return mean(-logsigmoid(reward(ex.chosen) - reward(ex.rejected)) for ex in examples)
