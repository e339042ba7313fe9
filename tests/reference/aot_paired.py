"""AOT, paired, Melnyk et al. 2024 (arXiv 2406.05882): quantiles of the policy's margins against the reference's."""

from common import apart, logsigmoid, mean, ref_total, total


def margins(examples):
    return [total(ex.chosen) - total(ex.rejected) for ex in examples]


def ref_margins(examples):
    return [ref_total(ex.chosen) - ref_total(ex.rejected) for ex in examples]


def smooth(examples, *, eps, **_):
    """Which quantile a pair is must not depend on rounding."""
    return apart(margins(examples), [ex.chosen.logps + ex.rejected.logps for ex in examples], eps) and apart(
        ref_margins(examples), [ex.chosen.ref_logps + ex.rejected.ref_logps for ex in examples], eps
    )


def loss(examples, *, beta, label_smoothing):
    policy, reference = sorted(margins(examples)), sorted(ref_margins(examples))

    def one(gap):
        return -(1 - label_smoothing) * logsigmoid(beta * gap) - label_smoothing * logsigmoid(-beta * gap)

    return mean(one(a - b) for a, b in zip(policy, reference, strict=True))
