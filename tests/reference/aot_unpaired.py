"""AOT, unpaired, Melnyk et al. 2024 (arXiv 2406.05882): quantiles of chosen log-ratios against those of rejected."""

from common import apart, logsigmoid, mean, ratio


def smooth(examples, *, eps, **_):
    """Which quantile a response is must not depend on rounding."""
    groups = [ex.chosen for ex in examples], [ex.rejected for ex in examples]
    return all(apart(map(ratio, group), [one.logps + one.ref_logps for one in group], eps) for group in groups)


def loss(examples, *, beta, label_smoothing):
    chosen = sorted(ratio(ex.chosen) for ex in examples)
    rejected = sorted(ratio(ex.rejected) for ex in examples)

    def one(gap):
        return -(1 - label_smoothing) * logsigmoid(beta * gap) - label_smoothing * logsigmoid(-beta * gap)

    return mean(one(a - b) for a, b in zip(chosen, rejected, strict=True))
