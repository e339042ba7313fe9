"""Maximum likelihood, with the three averages in use."""

from common import average as per_token
from common import mean, total
from mpmath import fsum


def loss(examples, *, average):
    if average == "sum":
        return mean(-total(ex.completion) for ex in examples)
    if average == "sequence":
        return mean(-per_token(ex.completion) for ex in examples)
    return -fsum(total(ex.completion) for ex in examples) / sum(len(ex.completion.logps) for ex in examples)
