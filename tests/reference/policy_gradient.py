"""What the references of policy-gradient losses share; an example is a rollout with lists over its tokens."""

from mpmath import exp, fsum

CUT = 40
"""Exponents of log-ratios are cut here, as documented."""


def bounded_exp(x):
    """eˣ, cut."""
    return exp(min(x, CUT))


def clip(x, low, high):
    """x, moved into [low, high]."""
    return max(low, min(x, high))


def ratios(ex):
    """ρ_t = π/π_old."""
    return [bounded_exp(new - old) for new, old in zip(ex.completion.logps, ex.old_logps, strict=True)]


def surrogate(ratio, advantage, low, high):
    """−min(ρA, clip(ρ)A)."""
    return -min(ratio * advantage, clip(ratio, 1 - low, 1 + high) * advantage)


def surrogates(ex, low, high):
    """The clipped surrogate at every token."""
    return [surrogate(ratio, a, low, high) for ratio, a in zip(ratios(ex), ex.advantages, strict=True)]


def penalties(ex, beta, kl, kl_ratio):
    """β times the estimate of KL(π ‖ π_ref) at every token."""
    if beta == 0:
        return [0 for _ in ex.completion.logps]

    def estimate(x):
        return {"k1": lambda: x, "k2": lambda: x**2 / 2, "k3": lambda: bounded_exp(-x) - 1 + x}[kl]()

    found = [estimate(a - b) for a, b in zip(ex.completion.logps, ex.completion.ref_logps, strict=True)]
    return [beta * (ratio if kl_ratio else 1) * one for ratio, one in zip(ratios(ex), found, strict=True)]


def sums(examples, values):
    """Σ_t of ``values(example)`` for each example."""
    return [fsum(values(ex)) for ex in examples]


def token_mean(examples, values):
    """The mean over all tokens of the batch."""
    return fsum(sums(examples, values)) / sum(len(ex.completion.logps) for ex in examples)


def sequence_mean(examples, values):
    """The mean over the tokens of each completion, then over completions."""
    return fsum(
        total / len(ex.completion.logps) for ex, total in zip(examples, sums(examples, values), strict=True)
    ) / len(examples)


def both(ex, values, beta, kl, kl_ratio):
    """Two lists added: a surrogate and the KL's part."""
    return [a + b for a, b in zip(values, penalties(ex, beta, kl, kl_ratio), strict=True)]
