"""What every objective must keep to, whatever its mathematics: each check takes a trial and returns an outcome."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from prefopt.core.batches import Batch, Completions, Rollouts, TokenLogps
from prefopt.core.counts import global_counts
from prefopt.core.labels import Axis, labels_of, optional_labels
from prefopt.core.objective import Objective
from prefopt.verify.evaluation import Evaluation, evaluate, loss_of, observed_of, state_of
from prefopt.verify.leaves import leaves, size, take, with_leaves
from prefopt.verify.results import PASSED, Outcome, holds
from prefopt.verify.search import Trial

CLOSE = 1e-9
"""Equal up to the order in which numbers are added."""


def padding(one: Trial) -> Outcome:
    """Neither how wide the padding is nor what stands in it changes the value or a gradient; nor do holes in masks."""
    bare = _evaluate(one, fill=0.0, from_tokens=True)
    padded = _evaluate(one, fill=float("nan"), padding=3, from_tokens=True)
    leaked = any(bool((gradient[~padded.masks[path]] != 0).any()) for path, gradient in padded.gradient.items())
    if leaked:
        return holds(False, "padding receives a gradient")
    return _same(bare, padded, "NaN in the padding, or its width, changes the result")


def permutation(one: Trial) -> Outcome:
    """The order of the examples in a batch does not matter."""
    batch = one.batch()
    order = torch.arange(size(batch) - 1, -1, -1)
    return _same_loss(one.objective, batch, _loss(one.objective, take(batch, order)), "the order of rows matters")


def phases(one: Trial) -> Outcome:
    """What the step shows to `prepare`, and what `prepare` makes of it, is what a trainer gives and can keep."""
    objective, batch = one.objective, one.objective.view(one.batch()).detach()
    observes, shown = objective.needs.observes, objective.observe(batch)
    if shown and not observes:
        return holds(
            False, f"observe shows {_names(shown)}, but a trainer asks only where needs says so: Needs(observes='rows')"
        )
    if observes and not shown:
        return holds(False, f"needs says that {_names(observes)} is observed, and observe shows nothing")
    for name, values in shown.items():
        if not isinstance(values, Tensor) or values.ndim == 0:
            return holds(False, f"observe shows {name!r} as one number: it must be a tensor with one value per row")
    if observes == {"mismatched"}:
        # A trainer does not score the rows themselves for this.
        rows = Completions.unscored(batch.completions.lengths)
        alone = objective.observe(dataclasses.replace(batch, completions=rows, ids=None))
        if any(not torch.equal(values, alone[name]) for name, values in shown.items()):
            return holds(False, "observe reads the rows, and needs says that mismatched completions alone are observed")
    initial = objective.init_state()
    try:
        state = objective.prepare(initial, shown)
    except KeyError as error:
        return holds(False, f"prepare asks for {error}, which neither observe shows nor init_state has")
    for name, value in {**initial, **state}.items():
        if name not in state:
            return holds(False, f"prepare loses {name!r} of the state that init_state declares")
        if not isinstance(value, Tensor):
            return holds(False, f"the state {name!r} is a {type(value).__name__}, and must be a tensor")
        if name in initial and value.shape != initial[name].shape:
            return holds(False, f"prepare changes the shape of the state {name!r}")
    return PASSED


def _names(what: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(what)))


def micro_batches(one: Trial) -> Outcome:
    """Accumulating over micro-batches, down to single examples, gives the loss of the whole step.

    Not checked for an objective that declares that it couples rows.
    """
    objective, batch = one.objective, one.batch()
    if objective.needs.coupled:
        return PASSED
    for parts in (size(batch), 2):
        split = [_part(batch, chunk, i) for i, chunk in enumerate(torch.arange(size(batch)).chunk(parts))]
        observed = [observed_of(objective, part.detach()) for part in split]
        joined = {name: torch.cat([one_[name] for one_ in observed]) for name in observed[0]}
        state = objective.prepare(objective.init_state(), joined)
        counts = global_counts([objective.counts(part) for part in split], lambda own: own)
        total = sum(objective(part, state).reduce(counts) for part in split)
        outcome = _same_loss(
            objective, batch, total, f"a step of {len(split)} micro-batches is not the step in one piece"
        )
        if not outcome.passed:
            return outcome
    return PASSED


def _part(batch: Batch, rows: Tensor, i: int) -> Batch:
    """Some rows; mismatched completions, which belong to the step, all go with the first part."""
    part = take(batch, rows)
    if getattr(part, "mismatched", None) is not None and i > 0:
        part = dataclasses.replace(part, mismatched=part.mismatched[:0])
    return part


def undeclared(one: Trial) -> Outcome:
    """What `Needs` does not name is never read: it may be NaN, and lengths may be anything.

    A mean over tokens reads lengths too, in its denominator.
    """
    objective, batch = one.objective, _without_extras(one.objective, one.batch())
    needs, loss = objective.needs, loss_of(objective)
    state = state_of(objective, batch)
    clean = evaluate(loss, batch, state)
    for what, poison in _poisons(objective):
        spoilt = poison(batch)
        if what == "lengths" and needs.tokens:
            continue  # they follow from the mask
        try:
            result = evaluate(loss, batch, state_of(objective, spoilt), transform=poison)
        except (TypeError, AttributeError) as error:
            return holds(False, f"reads {what}, which needs does not declare ({error})")
        outcome = _same(clean, result, f"reads {what}, which needs does not declare")
        if not outcome.passed:
            return outcome
    return PASSED


def _without_extras(objective: Objective, batch: Batch) -> Batch:
    """The batch without the labels that are not declared."""
    here = {field.name for field in dataclasses.fields(batch)}
    extras = (here & set(optional_labels(Axis.EXAMPLE))) - set(objective.needs.labels)
    return dataclasses.replace(batch, **dict.fromkeys(extras))


def _poisons(objective: Objective) -> list[tuple[str, Callable[[Batch], Batch]]]:
    needs = objective.needs
    found: list[tuple[str, Callable[[Completions], Completions]]] = []
    if not needs.reference:
        found.append(("ref_logps", _spoil_reference))
    if not needs.lengths:
        found.append(("lengths", lambda rows: dataclasses.replace(rows, lengths=7 * rows.lengths + 3)))
    if needs.rewards:
        found.append(("logps", lambda rows: dataclasses.replace(rows, logps=_nan_like(rows.logps))))
    if not needs.tokens and not needs.statistics:
        found.append(("tokens", _spoil_tokens))
    for statistic in {"kl", "log_sum_p2"} - needs.statistics:
        if needs.tokens:
            found.append((f"tokens.{statistic}", lambda rows, name=statistic: _with_token_nan(rows, name)))
    poisons = [(what, lambda batch, change=change: _each(batch, change)) for what, change in found]
    for label in optional_labels(Axis.EXAMPLE):
        if label not in needs.labels:  # NaN in an optional one means that the row has none
            poisons.append((label, lambda batch, label=label: _spoil_label(batch, label)))
    if needs.batch is Rollouts:
        for label in labels_of(Rollouts.kind, Axis.TOKEN):
            if label.name not in needs.labels:
                poisons.append((label.name, lambda batch, name=label.name: _spoil_column(batch, name)))
    return poisons


def _spoil_column(batch: Rollouts, name: str) -> Rollouts:
    return dataclasses.replace(batch, **{name: _nan_like(batch.tokens.logps)})


def _each(batch: Batch, change: Callable[[Completions], Completions]) -> Batch:
    changes = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Completions):
            changes[field.name] = change(value)
    return dataclasses.replace(batch, **changes)


def _nan_like(values: Tensor) -> Tensor:
    return torch.full_like(values, float("nan"), requires_grad=False)


def _spoil_reference(rows: Completions) -> Completions:
    tokens = rows.tokens
    if tokens is not None:
        tokens = dataclasses.replace(tokens, ref_logps=_nan_like(tokens.logps))
    return dataclasses.replace(rows, ref_logps=_nan_like(rows.logps), tokens=tokens)


def _spoil_tokens(rows: Completions) -> Completions:
    nothing = torch.full((len(rows), 2), float("nan"), dtype=rows.logps.dtype)
    tokens = TokenLogps(mask=torch.ones(len(rows), 2, dtype=torch.bool), logps=nothing, ref_logps=nothing)
    return dataclasses.replace(rows, tokens=tokens)


def _with_token_nan(rows: Completions, name: str) -> Completions:
    return dataclasses.replace(rows, tokens=dataclasses.replace(rows.tokens, **{name: _nan_like(rows.tokens.logps)}))


def _spoil_label(batch: Batch, label: str) -> Batch:
    if label not in {field.name for field in dataclasses.fields(batch)}:
        return batch
    return dataclasses.replace(batch, **{label: _nan_like(batch.rows.logps[: size(batch)])})


def pure(one: Trial) -> Outcome:
    """Calling twice gives the same loss; no input and no state is changed; the state stands still when frozen."""
    objective, batch = one.objective, one.batch()
    before = {path: value.clone() for path, value in leaves(batch).items()}
    batch = with_leaves(batch, {path: value.clone() for path, value in before.items()})
    state = dict(state_of(objective, batch))
    kept = {name: value.clone() for name, value in state.items()}
    first = objective(batch, state).mean()
    for path, value in leaves(batch).items():
        if not torch.equal(value.nan_to_num(), before[path].nan_to_num()):
            return holds(False, f"{path} is changed in place")
    if not torch.equal(first, objective(batch, state).mean()):
        return holds(False, "two calls on the same batch differ")
    if any(not torch.equal(value, state[name]) for name, value in kept.items()):
        return holds(False, "the state is changed in place")
    initial = objective.init_state()
    frozen = objective.prepare(initial, observed_of(objective, batch.detach()), frozen=True)
    moved = [name for name, value in initial.items() if not torch.equal(frozen[name], value)]
    return holds(not moved, f"a frozen prepare changes {', '.join(moved)}")


def shapes(one: Trial) -> Outcome:
    """Terms are one value per row over a unit that the batch counts; metrics are rows without gradient."""
    for dtype in (torch.float64, torch.float32):
        batch = one.batch(dtype)
        loss = one.objective(with_leaves(batch, {path: x.requires_grad_() for path, x in leaves(batch).items()}))
        for name, term in loss.terms.items():
            if term.values.ndim != 1 or term.values.dtype is not dtype:
                return holds(False, f"term {name!r} is {term.values.dtype} of shape {list(term.values.shape)}")
            if term.per not in loss.counts:
                return holds(False, f"term {name!r} is averaged per {term.per!r}, which the batch does not count")
        for name, values in loss.metrics.items():
            if values.ndim != 1 or values.requires_grad:
                return holds(False, f"metric {name!r} is not one plain value per row")
        if loss.mean().ndim != 0 or loss.mean().dtype is not dtype:
            return holds(False, f"the loss is {loss.mean().dtype} of shape {list(loss.mean().shape)}")
    return PASSED


def reward(one: Trial) -> Outcome:
    """The implicit reward is one finite value per completion."""
    batch = one.objective.view(one.batch())
    parts = [value for value in vars(batch).values() if isinstance(value, Completions)]
    try:
        rewards = [one.objective.reward(part) for part in parts]
    except NotImplementedError:
        return holds(False, "it has no implicit reward: write `reward`, from which rewards and accuracies are logged")
    right = [value.shape == part.logps.shape for value, part in zip(rewards, parts, strict=True)]
    return holds(
        all(right) and all(bool(torch.isfinite(value).all()) for value in rewards),
        "the reward is not one finite value per completion",
    )


def finite(one: Trial, dtype: torch.dtype) -> Outcome:
    """Value and every gradient are finite in ``dtype``."""
    result = _evaluate(one, dtype=dtype)
    if result.finite:
        return PASSED
    bad = [path for path, gradient in result.gradient.items() if not torch.isfinite(gradient).all()]
    where = f"the gradient of {', '.join(bad)}" if bad else f"the loss ({float(result.value)})"
    return holds(False, f"{where} is not finite in {str(dtype).removeprefix('torch.')}")


CONTRACT: dict[str, Callable[[Trial], Outcome]] = {
    "phases of a step": phases,
    "padding": padding,
    "permutation": permutation,
    "micro-batches": micro_batches,
    "undeclared inputs": undeclared,
    "purity": pure,
    "shapes": shapes,
}


def _evaluate(one: Trial, **build: Any) -> Evaluation:
    batch = one.batch(**build)
    return evaluate(loss_of(one.objective), batch, state_of(one.objective, batch))


def _loss(objective: Objective, batch: Batch) -> Tensor:
    return objective(batch).mean()


def _same(first: Evaluation, second: Evaluation, detail: str) -> Outcome:
    a, b = first.flat(), second.flat()
    if a.shape != b.shape:
        return holds(False, detail)
    # Where a gradient is tiny beside the others its own digits are noise of the sums.
    error = (a - b).abs() / (a.abs() + 1e-3 * a.abs().max()).clamp(min=1e-300)
    return Outcome(float(error.max()), CLOSE, detail)


def _same_loss(objective: Objective, batch: Batch, other: Tensor, detail: str) -> Outcome:
    result = evaluate(loss_of(objective), batch, state_of(objective, batch))
    return Outcome(float((result.value - other).abs()) / max(result.scale, 1e-300), CLOSE, detail)
