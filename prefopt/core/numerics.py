"""Numerics that objectives share: accurate where the naive formula cancels or overflows."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def sigmoid(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """σ(x) whose gradient, too, has all of its digits for a large x, where `torch.sigmoid` takes 1 − σ(x) from 1."""
    return torch.nn.functional.logsigmoid(x).exp()


def log1mexp(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """log(1 − eˣ) for x < 0, accurate near 0 and far from it; x is clamped to at most −1e-30.

    Two branches that meet at −log 2 (Mächler 2012, "Accurately computing log(1 − exp(−|a|))"). The clamp keeps value
    and gradient finite for a probability of exactly 1.
    """
    x = x.clamp(max=-1e-30)
    near = x > -math.log(2.0)
    # Each branch gets a harmless argument where the other one is taken, or its infinite gradient would leak
    # through `where` as 0 · inf.
    small = torch.where(near, x, -1.0)
    large = torch.where(near, -1.0, x)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def masked_logsumexp(values: Float[Tensor, "..."], mask: Bool[Tensor, "..."]) -> Float[Tensor, "..."]:
    """log Σ exp(values) over the last dimension where ``mask`` holds, which must be somewhere in every row."""
    values = torch.where(mask, values, -torch.inf)
    # Relative to the largest: the gradient's weights are exp(value − sum), and a sum of thousands has few digits.
    largest = values.detach().amax(dim=-1, keepdim=True)
    return (values - largest).logsumexp(dim=-1) + largest.squeeze(-1)


def grouped_log_softmax(values: Float[Tensor, " n"], same: Bool[Tensor, " n n"]) -> Float[Tensor, " n"]:
    """log softmax of each value among those of its group, ``same[i, j]`` saying whether i and j share one.

    Taken as log σ(value − log Σ exp(the others)), which stays accurate where one value dominates.
    """
    itself = torch.eye(len(values), dtype=torch.bool, device=values.device)
    alone = ~(same & ~itself).any(dim=1)
    others = same & (~itself | alone[:, None])
    return torch.where(alone, 0.0, torch.nn.functional.logsigmoid(values - masked_logsumexp(values, others)))


def divergence_terms(
    log_p: Float[Tensor, "..."], log_q: Float[Tensor, "..."], gap: Float[Tensor, "..."] | None = None
) -> Float[Tensor, "..."]:
    """p log(p/q) − p + q for each outcome, whose sum over all outcomes is KL(p ‖ q).

    None is negative, so that nothing cancels where p is all but q; p log(p/q) alone would leave the last digits.
    ``gap`` is log p − log q where it is known to more digits than the difference has.
    """
    gap = log_p - log_q if gap is None else gap
    near = gap.abs() < 0.5
    # p (e^−x − 1 + x) by the series of the bracket, to the last digit of float64.
    x = torch.where(near, gap, 0.0)
    series = torch.ones_like(x)
    for n in range(15, 2, -1):
        series = 1 - x / n * series
    p = log_p.exp()
    return torch.where(near, p * x**2 / 2 * series, p * gap - p + log_q.exp())


def keyed_uniform(*keys: Int[Tensor, "..."] | int) -> Float[Tensor, "..."]:
    """Uniform numbers in (0, 1) that depend on integer keys (broadcast together) and on nothing else.

    A draw keyed by the id of an example is the same in whatever micro-batch or on whatever rank the example falls.
    splitmix64 (Steele et al. 2014) is applied once for each key.
    """
    state = torch.zeros((), dtype=torch.int64)
    for key in keys:
        # The constants are 0x9E37…, 0xBF58… and 0x94D0… as signed numbers; products wrap around at 64 bits.
        state = (state ^ torch.as_tensor(key, dtype=torch.int64)) - 7046029254386353131
        state = (state ^ _shift(state, 30)) * -4658895280553007687
        state = (state ^ _shift(state, 27)) * -7723592293110705685
        state = state ^ _shift(state, 31)
    return (_shift(state, 12).double() + 0.5) / 2**52


def _shift(bits: Int[Tensor, "..."], by: int) -> Int[Tensor, "..."]:
    """Shift right without copying the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
