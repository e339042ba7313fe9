"""Small helpers for references on ranked lists."""

from mpmath import exp, fsum, log, nint


def standing(ex):
    """One number per completion, the larger the better: from ranks (1 is best) where given, otherwise the scores.

    Scores are compared to 12 digits: a derivative moves one by 1e-18, and that must not break a tie.
    """
    if getattr(ex, "ranks", None) is not None:
        return [-rank for rank in ex.ranks]
    return [nint(score * 10**12) for score in ex.scores]


def logsoftmax(values):
    """log of exp(v)/Σ exp(v), for each value."""
    top = max(values)
    normaliser = top + log(fsum(exp(value - top) for value in values))
    return [value - normaliser for value in values]
