"""Small helpers for references on ranked lists."""

from mpmath import exp, fsum, log


def standing(ex):
    """One number per completion, the larger the better: from ranks (1 is best) where given, otherwise the scores."""
    return ex.scores if getattr(ex, "ranks", None) is None else [-rank for rank in ex.ranks]


def logsoftmax(values):
    """log of exp(v)/Σ exp(v), for each value."""
    top = max(values)
    normaliser = top + log(fsum(exp(value - top) for value in values))
    return [value - normaliser for value in values]
