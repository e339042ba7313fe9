"""Bradley–Terry with centring, arXiv 2312.09244: −log σ(r_w − r_l) + η (r_w + r_l)²."""

from common import logsigmoid, mean


def loss(examples, *, centring):
    def one(ex):
        chosen, rejected = ex.chosen.rewards, ex.rejected.rewards
        return -logsigmoid(chosen - rejected) + centring * (chosen + rejected) ** 2

    return mean(one(ex) for ex in examples)
