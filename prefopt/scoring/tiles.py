"""From hidden states to per-token values through a linear vocabulary head, a tile of tokens × vocabulary at a time.

The log-sum-exp over a row is kept up to date from tile to tile (Milakov & Gimelshein 2018, arXiv 1805.02867), so that
no more logits than one tile's are ever held. What the backward pass costs depends on what learns:

- A frozen head: ∇_h log π(y) = (1 − π(y)) W_y − Σ_{v≠y} π(v) W_v is summed beside the log-sum-exp, from the logits that
  are there anyway. Head and gradient are 4KVh FLOPs, and nothing is computed twice.
- A head that learns, or KL(π_ref ‖ π): the tiles are computed again in the backward pass, 8KVh FLOPs with both
  gradients (and 4KVh for the reference's tiles). The two sums of the gradient of a KL nearly cancel, so they are
  subtracted before any rounding to half precision.

Logits are rounded as the model rounds them; all that follows, and every sum over tiles, is in float32, or in float64
where the logits are.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from prefopt.scoring.head import LinearHead

TILE = 2**22
"""Logits of one model that are held at once, in numbers: 16 MiB in float32."""

_ROWS = 2048
"""Rows of a tile, at most: enough that matrix products are fast, few enough that it has as many columns."""


class Through(NamedTuple):
    """Rows that go through a linear head.

    Attributes:
        hidden: the hidden states before the head.
        head: the head.
    """

    hidden: Float[Tensor, " k h"]
    head: LinearHead


def tile_values(
    own: Through,
    target: Int[Tensor, " k"],
    *,
    statistics: frozenset[str] = frozenset(),
    reference: Through | None = None,
    temperature: float = 1.0,
) -> dict[str, Float[Tensor, " k"]]:
    """Log-probabilities of tokens and statistics of their distributions.

    Args:
        own: the policy's rows. Gradients reach them, and the weight and bias of their head where those require it.
        target: the token ids.
        statistics: any of ``"entropy"``, ``"kl"``, ``"log_sum_p2"``, as in `score`.
        reference: the reference's rows, for ``"kl"``; without gradient.
        temperature: all logits are divided by it.

    Returns:
        ``logps`` and the statistics, in nats, in float32, or float64 where the logits are. They can be differentiated
        once.
    """
    names = ("logps", *sorted(statistics))
    sides = [own, reference] if "kl" in statistics else [own]
    plan = _Plan(names, tuple(_Shape.of(side.head, temperature) for side in sides), _ahead(own, statistics))
    tensors = [tensor for side in sides for tensor in (side.hidden, side.head.weight, side.head.bias)]
    return dict(zip(names, _Tiles.apply(plan, target, *tensors), strict=True))


def _ahead(own: Through, statistics: frozenset[str]) -> bool:
    """Whether the gradient is made in the forward pass."""
    learns = any(tensor is not None and tensor.requires_grad for tensor in (own.head.weight, own.head.bias))
    return torch.is_grad_enabled() and own.hidden.requires_grad and not learns and "kl" not in statistics


class _Shape(NamedTuple):
    """How a head's products become logits at a temperature: ``temper · cap · tanh(factor / cap · product)``, or without
    a cap ``temper · factor · product``; and the precision of the products."""

    dtype: torch.dtype
    factor: float
    cap: float | None
    temper: float

    @classmethod
    def of(cls, head: LinearHead, temperature: float) -> "_Shape":
        return cls(head.dtype, head.after.factor, head.after.cap, 1 / temperature)

    @property
    def slope(self) -> float:
        """Of the logits by the products, where a cap does not flatten them."""
        return self.factor * self.temper


class _Plan(NamedTuple):
    """What is asked for.

    Attributes:
        names: of the values.
        shapes: of the policy's head and, for a KL, of the reference's.
        ahead: whether the gradient is made in the forward pass.
    """

    names: tuple[str, ...]
    shapes: tuple[_Shape, ...]
    ahead: bool

    @property
    def wide(self) -> torch.dtype:
        """In which sums are kept."""
        wide = torch.float32
        for shape in self.shapes:
            wide = torch.promote_types(wide, shape.dtype)
        return wide


@dataclass
class _Side:
    """One model's rows and head, from which tiles of logits are made."""

    hidden: Float[Tensor, " k h"]
    weight: Float[Tensor, " v h"]
    bias: Float[Tensor, " v"] | None
    shape: _Shape
    wide: torch.dtype

    def __post_init__(self) -> None:
        self.hidden = self.hidden.to(self.shape.dtype)

    def columns(self, columns: slice) -> tuple[Float[Tensor, " n h"], Float[Tensor, " n"] | None]:
        """Weight and bias of some tokens, in the precision of the products."""
        bias = None if self.bias is None else self.bias[columns].to(self.shape.dtype)
        return self.weight[columns].to(self.shape.dtype), bias

    def logits(
        self, rows: slice, weight: Float[Tensor, " n h"], bias: Float[Tensor, " n"] | None, *, flat: bool
    ) -> tuple[Float[Tensor, " c n"], Float[Tensor, " c n"] | None]:
        """A tile, and if asked how much the cap flattens it there: 1 − tanh², None without a cap."""
        tile = functional.linear(self.hidden[rows], weight, bias).to(self.wide)
        _, factor, cap, temper = self.shape
        if cap is None:
            return tile if self.shape.slope == 1 else tile.mul_(self.shape.slope), None
        tile.mul_(factor / cap).tanh_()
        flatness = (1 - tile.square()) if flat else None
        return tile.mul_(cap * temper), flatness


class _Tiles(torch.autograd.Function):
    """Values of all tokens; see `tile_values`. The tensors are hidden states, weight and bias of each model."""

    @staticmethod
    def forward(ctx, plan: _Plan, target: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        with torch.autocast(target.device.type, enabled=False):
            values, normalisers, gradient = _forward(plan, target, _sides(plan, tensors))
        ctx.plan, ctx.dtype = plan, tensors[0].dtype
        if plan.ahead:
            ctx.save_for_backward(gradient)
        else:
            ctx.save_for_backward(target, *normalisers, *tensors)
        ctx.mark_non_differentiable(*(values[name] for name in plan.names if name not in ("logps", "kl")))
        return tuple(values[name] for name in plan.names)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        plan, saved = ctx.plan, ctx.saved_tensors
        given = dict(zip(plan.names, gradients, strict=True))
        if plan.ahead:
            return None, None, (given["logps"][:, None] * saved[0]).to(ctx.dtype), None, None
        target, *rest = saved
        normalisers, tensors = rest[: len(plan.shapes)], rest[len(plan.shapes) :]
        with torch.autocast(target.device.type, enabled=False):
            made = _backward(plan, target, _sides(plan, tensors), normalisers, given, ctx.needs_input_grad[2:5])
        cast = [None if one is None else one.to(tensor.dtype) for one, tensor in zip(made, tensors, strict=False)]
        return None, None, *cast, *[None] * (len(tensors) - 3)


def _sides(plan: _Plan, tensors: Sequence[Tensor | None]) -> list[_Side]:
    return [_Side(*tensors[3 * i : 3 * i + 3], shape, plan.wide) for i, shape in enumerate(plan.shapes)]


def _tiles(rows: int, columns: int) -> tuple[list[slice], list[slice]]:
    height = max(1, min(rows, _ROWS, TILE))
    return list(_split(rows, height)), list(_split(columns, max(1, TILE // height)))


def _split(length: int, size: int) -> Iterator[slice]:
    """As few parts as there must be, of equal size as far as possible."""
    parts = math.ceil(length / size)
    for part in range(parts):
        yield slice(length * part // parts, length * (part + 1) // parts)


def _place(target: Int[Tensor, " c"], columns: slice) -> tuple[Int[Tensor, " c 1"], Bool[Tensor, " c"]]:
    """Where in a tile each row's target is, and whether it is there at all (if not, the place is any)."""
    here = (target >= columns.start) & (target < columns.stop)
    return (target - columns.start).clamp(0, columns.stop - columns.start - 1)[:, None], here


def _add_product(to: Float[Tensor, " a b"], left: Float[Tensor, " a c"], right: Float[Tensor, " c b"]) -> None:
    """Add a matrix product in place; one in half precision is widened before it is added."""
    if to.dtype == left.dtype:
        to.addmm_(left, right)
    else:
        to += left @ right


def _forward(
    plan: _Plan, target: Int[Tensor, " k"], sides: list[_Side]
) -> tuple[dict[str, Tensor], list[Tensor], Tensor | None]:
    """Values, the log-sum-exp of each side, and, if wanted, the gradient of the log-probs by the hidden states."""
    own, reference = sides[0], sides[1] if len(sides) > 1 else None
    new = {"dtype": plan.wide, "device": target.device}
    values = {name: torch.empty(len(target), **new) for name in plan.names}
    normalisers = [torch.empty(len(target), **new) for _ in sides]
    gradient = torch.empty_like(own.hidden) if plan.ahead else None
    row_tiles, column_tiles = _tiles(len(target), len(own.weight))
    for rows in row_tiles:
        sums = _Sums(plan, target[rows], own.hidden.shape[1])
        other = None if reference is None else _ReferenceSums(plan, target[rows])
        for columns in column_tiles:
            weight, bias = own.columns(columns)
            logits, flatness = own.logits(rows, weight, bias, flat=plan.ahead)
            if other is not None:
                other.add(reference.logits(rows, *reference.columns(columns), flat=False)[0], logits)
            sums.add(logits, flatness, columns, weight)
        for name, value in sums.values().items():
            values[name][rows] = value
        normalisers[0][rows] = sums.normaliser
        if plan.ahead:
            gradient[rows] = sums.gradient(own)
        if other is not None:
            normalisers[1][rows] = other.normaliser
            values["kl"][rows] = other.excess - other.normaliser + sums.normaliser
    return values, normalisers, gradient


class _Sums:
    """Sums over the vocabulary for some rows, relative to e^top, where top is the largest logit so far.

    The target's own term is kept apart until the end: where it holds nearly all of the probability, 1 − π(y) would be
    lost in it.
    """

    def __init__(self, plan: _Plan, target: Int[Tensor, " c"], width: int) -> None:
        new = {"dtype": plan.wide, "device": target.device}
        self.plan, self.target = plan, target
        self.top = torch.full(target.shape, torch.finfo(plan.wide).min, **new)
        # Of a target outside of the vocabulary, which is never seen.
        self.picked = torch.full(target.shape, torch.nan, **new)
        self.flatness = torch.ones(target.shape, **new)
        self.rest, self.squares, self.surprise = (torch.zeros(target.shape, **new) for _ in range(3))
        self.product = torch.zeros(len(target), width, **new) if plan.ahead else None

    def add(
        self,
        logits: Float[Tensor, " c n"],
        flatness: Float[Tensor, " c n"] | None,
        columns: slice,
        weight: Float[Tensor, " n h"],
    ) -> None:
        """One tile of logits, which is used up."""
        place, here = _place(self.target, columns)
        found = logits.gather(1, place)[:, 0]
        self.picked = torch.where(here, found, self.picked)
        top = torch.maximum(self.top, logits.amax(dim=1))
        less = (self.top - top).exp_()
        # Not −inf, of which the entropy's 0 · z would be no number.
        logits.scatter_(1, place, torch.where(here, torch.finfo(logits.dtype).min, found)[:, None])
        logits.sub_(top[:, None])
        if "entropy" in self.plan.names:
            terms = logits.exp()
            self.surprise = less * (self.surprise + (self.top - top) * self.rest) + (terms * logits).sum(dim=1)
        else:
            terms = logits.exp_()
        if "log_sum_p2" in self.plan.names:
            self.squares = less.square() * self.squares + terms.square().sum(dim=1)
        self.rest = less * self.rest + terms.sum(dim=1)
        self.top = top
        if self.product is not None:
            if flatness is not None:
                self.flatness = torch.where(here, flatness.gather(1, place)[:, 0], self.flatness)
                terms.mul_(flatness)
            _add_product(self.product.mul_(less[:, None]), terms.to(weight.dtype), weight)

    @property
    def total(self) -> Float[Tensor, " c"]:
        return self.rest + (self.picked - self.top).exp()

    @property
    def normaliser(self) -> Float[Tensor, " c"]:
        return self.top + self.total.log()

    def values(self) -> dict[str, Float[Tensor, " c"]]:
        far, total = self.picked - self.top, self.total
        values = {"logps": far - total.log()}
        if "entropy" in self.plan.names:
            values["entropy"] = total.log() - (self.surprise + far.exp() * far) / total
        if "log_sum_p2" in self.plan.names:
            values["log_sum_p2"] = (self.squares + (2 * far).exp()).log() - 2 * total.log()
        return values

    def gradient(self, own: _Side) -> Float[Tensor, " c h"]:
        """Of log π(y) by the hidden states."""
        of_target = own.weight[self.target].to(own.shape.dtype) * (self.rest * self.flatness)[:, None]
        return of_target.sub_(self.product).mul_((own.shape.slope / self.total)[:, None])


class _ReferenceSums:
    """Sums over the vocabulary under the reference, relative to e^top, top being the largest of its logits so far."""

    def __init__(self, plan: _Plan, target: Int[Tensor, " c"]) -> None:
        new = {"dtype": plan.wide, "device": target.device}
        self.top = torch.full(target.shape, torch.finfo(plan.wide).min, **new)
        self.total, self.differences = (torch.zeros(target.shape, **new) for _ in range(2))

    def add(self, logits: Float[Tensor, " c n"], policy: Float[Tensor, " c n"]) -> None:
        """One tile of logits, which is used up, and the policy's."""
        difference = logits - policy
        top = torch.maximum(self.top, logits.amax(dim=1))
        less = (self.top - top).exp_()
        terms = logits.sub_(top[:, None]).exp_()
        self.total = less * self.total + terms.sum(dim=1)
        self.differences = less * self.differences + difference.mul_(terms).sum(dim=1)
        self.top = top

    @property
    def normaliser(self) -> Float[Tensor, " c"]:
        return self.top + self.total.log()

    @property
    def excess(self) -> Float[Tensor, " c"]:
        """Σ_v π_ref(v) · (reference's logit − policy's)."""
        return self.differences / self.total


def _backward(
    plan: _Plan,
    target: Int[Tensor, " k"],
    sides: list[_Side],
    normalisers: list[Float[Tensor, " k"]],
    given: dict[str, Float[Tensor, " k"]],
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    """Gradients by the policy's hidden states, weight and bias, where needed."""
    own, reference = sides[0], sides[1] if len(sides) > 1 else None
    new = {"dtype": plan.wide, "device": target.device}
    by_hidden = torch.zeros(own.hidden.shape, **new) if needed[0] else None
    by_weight = torch.empty_like(own.weight) if needed[1] else None
    by_bias = torch.empty_like(own.bias) if needed[2] else None
    logps, kl = (None if one is None else one * own.shape.slope for one in (given["logps"], given.get("kl")))
    row_tiles, column_tiles = _tiles(len(target), len(own.weight))
    for columns in column_tiles:
        weight, bias = own.columns(columns)
        to_weight = None if by_weight is None else torch.zeros(weight.shape, **new)
        to_bias = None if by_bias is None else torch.zeros(len(weight), **new)
        for rows in row_tiles:
            logits, flatness = own.logits(rows, weight, bias, flat=True)
            back = logits.sub_(normalisers[0][rows, None]).exp_()
            back.mul_((-logps[rows] if kl is None else kl[rows] - logps[rows])[:, None])
            if reference is not None:
                terms = reference.logits(rows, *reference.columns(columns), flat=False)[0]
                terms.sub_(normalisers[1][rows, None]).exp_()
                back.addcmul_(terms, kl[rows, None], value=-1)
            place, here = _place(target[rows], columns)
            back.scatter_add_(1, place, torch.where(here, logps[rows], 0)[:, None])
            if flatness is not None:
                back.mul_(flatness)
            if to_bias is not None:
                to_bias += back.sum(dim=0)
            back = back.to(own.shape.dtype)
            if by_hidden is not None:
                _add_product(by_hidden[rows], back, weight)
            if to_weight is not None:
                _add_product(to_weight, back.T, own.hidden[rows])
        if by_weight is not None:
            by_weight[columns] = to_weight
        if by_bias is not None:
            by_bias[columns] = to_bias
    return [by_hidden, by_weight, by_bias]
