"""A guess at why a loss is not the one it is meant to be: known mistakes are tried, and one that explains it is named.

A mistake explains a function if, made in prefopt's own objective, it gives the function's value on every trial.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt import objectives
from prefopt.core.batches import Batch, Completions, Labelled, Pairs
from prefopt.core.errors import PrefoptError
from prefopt.core.loss import State
from prefopt.core.objective import Objective
from prefopt.core.registry import REGISTRY
from prefopt.verify.adapters import map_completions, without_mask
from prefopt.verify.hyperparameters import alternatives
from prefopt.verify.leaves import size

CLOSE = 1e-7


@dataclass(frozen=True)
class Point:
    """A trial on which the foreign function has been evaluated."""

    objective: Objective
    batch: Batch
    state: State
    value: float
    expected: float


@dataclass(frozen=True)
class Candidate:
    """A mistake in words, and the loss that it makes of an objective."""

    cause: str
    loss: Callable[[Objective, Batch, State], Tensor]


def diagnose(points: Sequence[Point], tokens: bool) -> str:
    """The first mistake that explains all points, or an empty string."""
    scaled = _constant(points)
    if scaled:
        return scaled
    for candidate in _candidates(points[0].objective, tokens):
        if all(_explains(candidate, point) for point in points):
            return candidate.cause
    return ""


def _explains(candidate: Candidate, point: Point) -> bool:
    try:
        with torch.no_grad():
            found = float(candidate.loss(point.objective, point.batch, point.state))
    except Exception:
        # A mistake that cannot be made here (no reference to forget) explains nothing.
        return False
    return abs(found - point.value) <= CLOSE * max(abs(found), abs(point.value), 1e-6)


def _constant(points: Sequence[Point]) -> str:
    """A wrong factor or a constant that is the same on every point."""
    usable = [point for point in points if abs(point.expected) > 1e-6]
    if not usable:
        return ""
    factors = [point.value / point.expected for point in usable]
    if _same(factors) and abs(factors[0] - 1) > 1e-6:
        return "the opposite sign" if abs(factors[0] + 1) < 1e-6 else f"a factor of {factors[0]:.6g} on the whole loss"
    per_row = [factor / size(point.batch) for factor, point in zip(factors, usable, strict=True)]
    if _same(per_row) and abs(per_row[0] - 1) < 1e-6:
        return "a sum over the batch where the paper takes a mean"
    shifts = [point.value - point.expected for point in points]
    if _same(shifts) and abs(shifts[0]) > 1e-6:
        return f"a constant of {shifts[0]:.6g} is added"
    return ""


def _same(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= CLOSE * max(map(abs, values))


def _candidates(objective: Objective, tokens: bool) -> Iterator[Candidate]:
    if tokens:
        yield from _of_masks()
    if objective.needs.batch is Pairs:
        yield from _of_pairs()
    yield from _of_inputs()
    if objective.needs.batch is Labelled:
        yield from _of_labelled()
    yield from _of_state()
    yield from _of_hyperparameters(objective)
    yield from _of_names(objective)


def _settings(objective: Objective) -> dict:
    return {field.name: getattr(objective, field.name) for field in dataclasses.fields(objective)}


def _on(cause: str, change: Callable[[Objective, Batch], Batch]) -> Candidate:
    return Candidate(cause, lambda objective, batch, state: objective(change(objective, batch), state).mean())


def _rows(cause: str, change: Callable[[Completions], Completions]) -> Candidate:
    return _on(cause, lambda _, batch: map_completions(batch, change))


def _scaled(rows: Completions, policy: Tensor | float = 1.0, reference: Tensor | float = 1.0) -> Completions:
    ref = None if rows.ref_logps is None else rows.ref_logps * reference
    tokens = rows.tokens
    if tokens is not None:
        by_row = [_column(policy), _column(reference)]
        refs = None if tokens.ref_logps is None else tokens.ref_logps * by_row[1]
        tokens = dataclasses.replace(tokens, logps=tokens.logps * by_row[0], ref_logps=refs)
    return dataclasses.replace(rows, logps=rows.logps * policy, ref_logps=ref, tokens=tokens)


def _column(factor: Tensor | float) -> Tensor | float:
    return factor[:, None] if isinstance(factor, Tensor) else factor


def _of_masks() -> Iterator[Candidate]:
    yield _on("the mask is not applied: padding counts", lambda _, batch: without_mask(batch))
    yield _on(
        "means over all positions, padding too, where the paper sums tokens",
        lambda _, batch: map_completions(without_mask(batch), _per_token),
    )

    def shifted(rows: Completions, first: bool) -> Completions:
        order = rows.tokens.mask.cumsum(dim=1)
        edge = order == (1 if first else order.amax(dim=1, keepdim=True))
        mask = rows.tokens.mask & ~edge
        return Completions.from_tokens(dataclasses.replace(rows.tokens, mask=mask))

    yield _rows("the first token of every completion is left out", lambda rows: shifted(rows, True))
    yield _rows("the last token of every completion is left out", lambda rows: shifted(rows, False))

    def padded(rows: Completions) -> Completions:
        width = torch.full_like(rows.lengths, rows.tokens.mask.shape[1])
        return dataclasses.replace(rows, lengths=width)

    yield _rows("lengths count the padding", padded)


def _per_token(rows: Completions) -> Completions:
    return _scaled(rows, 1 / rows.lengths, 1 / rows.lengths)


def _of_inputs() -> Iterator[Candidate]:
    def summed(rows: Completions) -> Completions:
        return _scaled(rows, rows.lengths, rows.lengths)

    yield _rows("means over tokens where the paper sums them", _per_token)
    yield _rows("sums over tokens where the paper takes means", summed)
    yield _rows("means over tokens of the policy only", lambda rows: _scaled(rows, 1 / rows.lengths))
    yield _rows("the reference is ignored", lambda rows: _scaled(rows, 1.0, 0.0))
    yield _rows("the sign of the reference term", lambda rows: _scaled(rows, 1.0, -1.0))
    yield _rows("the policy and the reference are exchanged", _exchanged)
    yield _rows("the reference is taken twice, the policy not at all", lambda rows: _scaled(rows, 0.0))
    for name in ("beta", "tau", "eta"):
        yield _on(f"{name} on the policy only, not on the reference", lambda o, b, n=name: _uneven(o, b, n, False))
        yield _on(f"{name} on the reference only, not on the policy", lambda o, b, n=name: _uneven(o, b, n, True))


def _exchanged(rows: Completions) -> Completions:
    return dataclasses.replace(rows, logps=rows.ref_logps, ref_logps=rows.logps)


def _uneven(objective: Objective, batch: Batch, name: str, policy: bool) -> Batch:
    inverse = 1 / getattr(objective, name)
    return map_completions(batch, lambda rows: _scaled(rows, *((inverse, 1.0) if policy else (1.0, inverse))))


def _of_pairs() -> Iterator[Candidate]:
    def sides(batch: Pairs, chosen: Completions, rejected: Completions) -> Pairs:
        return dataclasses.replace(batch, chosen=chosen, rejected=rejected)

    yield _on("chosen and rejected are exchanged", lambda _, b: sides(b, b.rejected, b.chosen))
    yield _on("the sign of the rejected term", lambda _, b: sides(b, b.chosen, _scaled(b.rejected, -1.0, -1.0)))
    yield _on("the sign of the chosen term", lambda _, b: sides(b, _scaled(b.chosen, -1.0, -1.0), b.rejected))
    yield _on("the rejected response is ignored", lambda _, b: sides(b, b.chosen, _scaled(b.rejected, 0.0, 0.0)))
    yield _on("the chosen response is ignored", lambda _, b: sides(b, _scaled(b.chosen, 0.0, 0.0), b.rejected))
    for name in ("beta", "tau"):
        yield _on(
            f"{name} on one side only (the chosen response)",
            lambda o, b, n=name: sides(b, b.chosen, _scaled(b.rejected, 1 / getattr(o, n), 1 / getattr(o, n))),
        )
        yield _on(
            f"{name} on one side only (the rejected response)",
            lambda o, b, n=name: sides(b, _scaled(b.chosen, 1 / getattr(o, n), 1 / getattr(o, n)), b.rejected),
        )


def _of_labelled() -> Iterator[Candidate]:
    def turned(batch: Labelled, which: Tensor) -> Labelled:
        sign = torch.where(which, -1.0, 1.0).to(batch.completions.logps.dtype)
        return dataclasses.replace(batch, completions=_scaled(batch.completions, sign, sign))

    def relabelled(batch: Labelled) -> Labelled:
        return dataclasses.replace(batch, desirable=~batch.desirable)

    yield _on("desirable and undesirable are exchanged", lambda _, b: relabelled(b))
    yield _on("the sign of the undesirable term", lambda _, b: turned(b, ~b.desirable))
    yield _on("the sign of the desirable term", lambda _, b: turned(b, b.desirable))


def _of_state() -> Iterator[Candidate]:
    for name in ("z0", "delta"):
        for words, factor in (("is ignored", 0.0), ("has the wrong sign", -1.0)):

            def loss(objective: Objective, batch: Batch, state: State, n: str = name, f: float = factor) -> Tensor:
                return objective(batch, {**state, n: f * state[n]}).mean()

            yield Candidate(f"{name} {words}", loss)


def _of_hyperparameters(objective: Objective) -> Iterator[Candidate]:
    for field in dataclasses.fields(objective):
        default = field.default
        if isinstance(default, (bool, str)):
            for other in alternatives(field):
                yield _with(f"this is {objective.name}({field.name}={other!r})", field.name, lambda _, v=other: v)
        elif isinstance(default, (int, float)):
            yield _with(f"{field.name} is ignored (taken as 1)", field.name, lambda _: 1.0)
            yield _with(f"{field.name} is ignored (taken as 0)", field.name, lambda _: 0.0)
            yield _with(f"1/{field.name} in place of {field.name}", field.name, lambda value: 1 / value)
            yield _with(f"1 − {field.name} in place of {field.name}", field.name, lambda value: 1 - value)
            yield _with(f"twice {field.name}", field.name, lambda value: 2 * value)
            yield _with(f"half of {field.name}", field.name, lambda value: value / 2)
            yield _with(f"−{field.name} in place of {field.name}", field.name, lambda value: -value)


def _with(cause: str, name: str, change: Callable) -> Candidate:
    def loss(objective: Objective, batch: Batch, state: State) -> Tensor:
        changed = object.__new__(type(objective))
        # Past the bounds: a mistake need not respect them.
        for key, value in vars(objective).items():
            object.__setattr__(changed, key, value)
        object.__setattr__(changed, name, change(getattr(objective, name)))
        return _terms_mean(changed, batch, state)

    return Candidate(cause, loss)


def _terms_mean(objective: Objective, batch: Batch, state: State) -> Tensor:
    batch = objective.view(batch)
    counts = objective.counts(batch)
    terms = objective.terms(batch, state).values()
    return torch.stack([term.weight * term.values.sum() / max(counts[term.per], 1) for term in terms]).sum()


def _of_names(objective: Objective) -> Iterator[Candidate]:
    """Another objective of the zoo, at the hyperparameters that the two have in common."""
    for name in objectives.names():
        entry = REGISTRY[name]
        if name == objective.name or entry.cls.needs.batch is not objective.needs.batch:
            continue

        def loss(one: Objective, batch: Batch, state: State, name: str = name) -> Tensor:
            open_ = [
                field for field in dataclasses.fields(REGISTRY[name].cls) if field.name not in REGISTRY[name].fixed
            ]
            given = _settings(one)
            shared = {field.name: given[field.name] for field in open_ if field.name in given}
            numbers = [value for value in given.values() if isinstance(value, float)]
            if not shared and open_ and numbers:  # the scale of one is the scale of the other, under another name
                shared = {open_[0].name: numbers[0]}
            try:
                other = objectives.get_objective(name, **shared)
            except PrefoptError:
                other = objectives.get_objective(name)
            return other(batch).mean()

        yield Candidate(f"this is {name!r}, not {objective.name!r}", loss)
