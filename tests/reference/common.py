"""Small helpers of the scalar references. All of them work on mpf and on plain numbers."""

from itertools import pairwise

from mpmath import exp, fsum, log1p, mpf


def logsigmoid(z):
    """log σ(z) = −log(1 + e^−z), accurate at both ends."""
    return -log1p(exp(-z)) if z >= 0 else z - log1p(exp(z))


def sigmoid(z):
    """σ(z) = 1/(1 + e^−z)."""
    return 1 / (1 + exp(-z)) if z >= 0 else exp(z) / (1 + exp(z))


def total(completion):
    """log π(y): the sum over the tokens of a completion."""
    return fsum(completion.logps)


def ref_total(completion):
    """log π_ref(y)."""
    return fsum(completion.ref_logps)


def ratio(completion):
    """s(y) = log π(y) − log π_ref(y)."""
    return total(completion) - ref_total(completion)


def average(completion):
    """m(y) = log π(y)/len(y)."""
    return total(completion) / len(completion.logps)


def mean(values):
    """The arithmetic mean of a sequence."""
    values = list(values)
    return fsum(values) / mpf(len(values))


def apart(values, inputs, eps):
    """Whether rounding keeps the order of sums: any two of ``values`` are equal, or further apart than it moves them.

    ``inputs`` are the numbers that each value is a sum of. Summing n of them to a precision of ``eps`` is wrong by at
    most n·eps/2·Σ|x| (Higham 2002, eq. 4.4), and so is the other value.
    """
    limit = max(len(parts) * eps * fsum(abs(x) for x in parts) for parts in inputs)
    ordered = sorted(values)
    return all(a == b or b - a > limit for a, b in pairwise(ordered))


MASK = (1 << 64) - 1


def lot(*keys):
    """splitmix64 chained over integer keys, in Python's unbounded integers: the upper 52 bits of a draw."""
    z = 0
    for key in keys:
        z = ((z ^ key) + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        z ^= z >> 31
    return z >> 12
