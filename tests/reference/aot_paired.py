"""AOT, paired, Melnyk et al. 2024 (arXiv 2406.05882): quantiles of the policy's margins against the reference's."""

from common import logsigmoid, mean, ref_total, total


def loss(examples, *, beta, label_smoothing):
    policy = sorted(total(ex.chosen) - total(ex.rejected) for ex in examples)
    reference = sorted(ref_total(ex.chosen) - ref_total(ex.rejected) for ex in examples)

    def one(gap):
        return -(1 - label_smoothing) * logsigmoid(beta * gap) - label_smoothing * logsigmoid(-beta * gap)

    return mean(one(a - b) for a, b in zip(policy, reference, strict=True))
