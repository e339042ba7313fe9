"""Checks that ask whether something *matters*: an input that is declared, a hyperparameter, a name of its own."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from prefopt.core.batches import Batch, Completions
from prefopt.core.errors import UsageError
from prefopt.core.labels import labels_of
from prefopt.core.needs import Needs
from prefopt.core.objective import Objective
from prefopt.core.registry import Entry
from prefopt.objectives import get_objective
from prefopt.verify.cases import Seeded, draw
from prefopt.verify.evaluation import evaluate, loss_of, state_of
from prefopt.verify.gradients import is_trained
from prefopt.verify.hyperparameters import alternatives, backgrounds, varied
from prefopt.verify.leaves import leaves, with_leaves
from prefopt.verify.results import Finding

SEEDS = 12
DIFFERENT = 1e-9


def probes(needs: Needs) -> Iterator[Batch]:
    """A few fixed batches of the kind and content that an objective needs."""
    for seed in range(SEEDS):
        regime = ("ordinary", "ordinary", "extreme", "reference")[seed % 4]
        yield draw(Seeded(seed), needs, regime=regime, rows=3, longest=30).build()


def signature(objective: Objective, batch: Batch) -> Tensor:
    """Value and gradient of a batch in one vector."""
    return evaluate(loss_of(objective), batch, state_of(objective, batch)).flat()


def differ(a: Tensor, b: Tensor) -> bool:
    """Whether two signatures are different losses rather than two roundings of one."""
    return a.shape != b.shape or bool(((a - b).abs() > DIFFERENT * a.abs().max().clamp(min=1.0)).any())


def hyperparameters_act(cls: type[Objective], fixed: Mapping[str, Any]) -> Finding:
    """Every hyperparameter that the name leaves open changes the value or the gradient somewhere."""
    for field in varied(cls, fixed):
        if not alternatives(field):
            return Finding("hyperparameters", False, detail=f"no other value of {field.name} is known to try")
        if not any(_acts(cls, background, field) for background in backgrounds(cls, fixed, field.name)):
            return Finding("hyperparameters", False, detail=f"{field.name} changes nothing")
    return Finding("hyperparameters", True)


def _acts(cls: type[Objective], background: Mapping[str, Any], field: dataclasses.Field) -> bool:
    for value in alternatives(field):
        try:
            first, second = cls(**background), cls(**{**background, field.name: value})
        except UsageError:
            continue
        # The union of what the two need: a hyperparameter may decide what is read.
        for batch in probes(_union(first.needs, second.needs)):
            if differ(signature(first, batch), signature(second, batch)):
                return True
    return False


def _union(a: Needs, b: Needs) -> Needs:
    return dataclasses.replace(
        a,
        reference=a.reference or b.reference,
        tokens=a.tokens or b.tokens,
        rewards=a.rewards or b.rewards,
        values=a.values or b.values,
        statistics=a.statistics | b.statistics,
        labels=tuple(dict.fromkeys((*a.labels, *b.labels))),
        observes=a.observes | b.observes,
    )


def same_loss(first: Entry, second: Entry) -> bool:
    """Whether two registered names give the same value and gradient at their defaults, wherever both can be taken."""
    if get_objective(first.name).needs.batch is not get_objective(second.name).needs.batch:
        return False  # on pairs, which both can read, Plackett–Luce is DPO, and should be
    one, other = _at_defaults(first.name), _at_defaults(second.name)
    return len(one) == len(other) and not any(differ(a, b) for a, b in zip(one, other, strict=True))


@cache
def _at_defaults(name: str) -> tuple[Tensor, ...]:
    objective = get_objective(name)
    return tuple(signature(objective, batch) for batch in probes(_all(objective.needs.batch)))


def _all(kind: type[Batch]) -> Needs:
    return Needs(
        batch=kind,
        reference=True,
        lengths=True,
        tokens=True,
        statistics=frozenset({"kl", "log_sum_p2"}),
        rewards=True,
        values=True,
        observes=frozenset({"mismatched"}),
        labels=tuple(label.name for label in labels_of(kind.kind)),
    )


def declared(cls: type[Objective], fixed: Mapping[str, Any]) -> Finding:
    """Every input that `Needs` declares changes the loss somewhere; a needless one costs its user a forward pass."""
    objective = cls(**fixed)
    for what, change in _changes(objective.needs):
        if not any(_changed(objective, batch, change(batch)) for batch in probes(objective.needs)):
            return Finding("declared inputs", False, detail=f"needs declares {what}, which is never read")
    return Finding("declared inputs", True)


def _changed(objective: Objective, batch: Batch, other: Batch) -> bool:
    loss = loss_of(objective)
    first = evaluate(loss, batch, state_of(objective, batch))
    second = evaluate(loss, other, state_of(objective, other))
    return differ(first.flat(), second.flat())


def _changes(needs: Needs) -> Iterator[tuple[str, Callable[[Batch], Batch]]]:
    if needs.reference:
        yield "reference", lambda batch: _shift(batch, "ref_logps")
    if needs.lengths:
        yield "lengths", _longer
    if needs.rewards:
        yield "rewards", lambda batch: _shift(batch, "rewards")
    for statistic in needs.statistics:
        yield statistic, lambda batch, name=statistic: _shift(batch, name)
    for label in needs.labels:
        yield label, lambda batch, name=label: _changed_label(batch, name)


def _changed_label(batch: Batch, name: str) -> Batch:
    column = getattr(batch, name)
    if column is not None and column.dtype is torch.bool:
        return dataclasses.replace(batch, **{name: ~column})
    return _shift(batch, name)


def _shift(batch: Batch, name: str) -> Batch:
    """Move every leaf of one name, by another amount in each row and each group of completions."""
    found = [path for path in leaves(batch) if path.split(".")[-1] == name]
    changed = {}
    for k, path in enumerate(found):
        value = leaves(batch)[path]
        steps = 0.05 * (k + 1) * torch.arange(1, value.numel() + 1, dtype=value.dtype).reshape(value.shape)
        changed[path] = value - steps
    return with_leaves(batch, changed)


def _longer(batch: Batch) -> Batch:
    changes = {}
    for k, field in enumerate(dataclasses.fields(batch)):
        value = getattr(batch, field.name)
        if isinstance(value, Completions):
            changes[field.name] = dataclasses.replace(value, lengths=(2 + k) * value.lengths + 1)
    return dataclasses.replace(batch, **changes)


def reaches(cls: type[Objective], fixed: Mapping[str, Any]) -> Finding:
    """Some gradient reaches what is trained."""
    for batch in probes(cls(**fixed).needs):
        objective = cls(**fixed)
        found = evaluate(loss_of(objective), batch, state_of(objective, batch))
        if any(bool(gradient.any()) for path, gradient in found.gradient.items() if is_trained(path)):
            return Finding("a gradient", True)
    return Finding("a gradient", False, detail="no gradient reaches the model: everything is detached or constant")
