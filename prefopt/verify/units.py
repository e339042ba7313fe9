"""Whether each term is averaged over what it sums: a mean per token of all rows is none over the desirable ones.

What a unit counts and what a term reads are both found out by trying. Rows fall into parts: the chosen and the rejected
completions of pairs, the desirable and the undesirable ones of labelled rows, the best ones of groups and the others. A
unit counts a part if its count changes with the lengths, or the number, of the rows in it. The terms of a unit read a
part if their sum ever changes with what was scored for it.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from prefopt.core.batches import Batch, Completions, Labelled, Pairs, Ranked
from prefopt.core.objective import Combination, Objective
from prefopt.verify.cases import Seeded
from prefopt.verify.evaluation import state_of
from prefopt.verify.leaves import leaves, take, with_leaves
from prefopt.verify.results import Finding
from prefopt.verify.search import trial

TRIALS = 24
CHANGED = 1e-12

Parts = Mapping[str, Callable[[Batch], Mapping[str, Tensor]]]
"""The name of a part → for each group of completions in a batch, by its field, which rows are in the part."""


def _side(name: str) -> Callable[[Batch], Mapping[str, Tensor]]:
    return lambda batch: {name: torch.ones(len(getattr(batch, name)), dtype=torch.bool)}


PARTS: dict[type[Batch], Parts] = {
    Pairs: {"chosen": _side("chosen"), "rejected": _side("rejected")},
    Labelled: {
        "desirable": lambda batch: {"completions": batch.desirable},
        "undesirable": lambda batch: {"completions": ~batch.desirable},
    },
    Ranked: {"best": lambda batch: {"completions": batch.best}, "other": lambda batch: {"completions": ~batch.best}},
}


def units(cls: type[Objective], fixed: Mapping[str, Any]) -> Finding:
    """Whether what the terms of each unit read is what the unit counts.

    A sum over rows may leave a class out on purpose, with an explicit 0 for each of its rows; a mean over tokens may
    not, nor one over rows that has no value for some of them.
    """
    counted: dict[str, set[str]] = defaultdict(set)
    read: dict[str, set[str]] = defaultdict(set)
    whole: dict[str, bool] = {}
    for seed in range(TRIALS):
        one = trial(Seeded(seed), cls, fixed, defaults=seed % 2 == 0, regime="ordinary", rows=2 + seed % 3, longest=5)
        if isinstance(one.objective, Combination):
            return Finding("units", True)  # each part has units of its own
        batch = one.objective.view(one.batch(fill=0.0))
        for unit, name in _counted(one.objective, batch):
            counted[unit].add(name)
        for unit, name in _read(one.objective, batch):
            read[unit].add(name)
        counts = one.objective.counts(batch)
        for term in one.objective.terms(batch, state_of(one.objective, batch)).values():
            of_rows = len(term.values) == counts[term.per] and "token" not in term.per
            whole[term.per] = whole.get(term.per, True) and of_rows
    for unit, names in read.items():
        missed = sorted(counted[unit] - names)
        if missed and not whole[unit]:
            return Finding("units", False, detail=_too_wide(unit, missed, names, counted))
        beyond = sorted(names - counted[unit])
        if beyond and cls.needs.batch is Labelled:
            return Finding("units", False, detail=_too_narrow(unit, beyond))
    return Finding("units", True)


def _too_wide(unit: str, missed: list[str], names: set[str], counted: Mapping[str, set[str]]) -> str:
    better = [other for other, parts in counted.items() if parts == names and ("token" in other) == ("token" in unit)]
    advice = f": average it per {' or '.join(map(repr, better))}" if better else ""
    rows = " and ".join(missed)
    return f"what is averaged per {unit!r} never reads the {rows} rows, which {unit!r} counts as well{advice}"


def _too_narrow(unit: str, beyond: list[str]) -> str:
    return f"what is averaged per {unit!r} sums over the {' and '.join(beyond)} rows too, which {unit!r} does not count"


def _parts(batch: Batch) -> Iterable[tuple[str, Mapping[str, Tensor]]]:
    for kind, parts in PARTS.items():
        if isinstance(batch, kind):
            return [(name, rows_of(batch)) for name, rows_of in parts.items()]
    return []


def _counted(objective: Objective, batch: Batch) -> Iterable[tuple[str, str]]:
    """Units with the parts that they count."""
    before = objective.counts(batch)
    for name, rows in _parts(batch):
        longer = objective.counts(_longer(batch, rows))
        found = {unit for unit, count in longer.items() if count != before[unit]}
        if isinstance(batch, Labelled):
            fewer = objective.counts(take(batch, (~rows["completions"]).nonzero().flatten()))
            found |= {unit for unit, count in fewer.items() if count != before[unit]}
        elif isinstance(batch, Pairs):
            found.add("example")
        yield from ((unit, name) for unit in found if unit in before)


def _longer(batch: Batch, rows: Mapping[str, Tensor]) -> Batch:
    changes = {}
    for field, chosen in rows.items():
        completions: Completions = getattr(batch, field)
        changes[field] = dataclasses.replace(completions, lengths=completions.lengths + chosen.long())
    return dataclasses.replace(batch, **changes)


def _read(objective: Objective, batch: Batch) -> Iterable[tuple[str, str]]:
    """Units with the parts that change the sum of a term that is averaged over them."""
    state = state_of(objective, batch)

    def sums(batch: Batch) -> dict[tuple[str, str], float]:
        with torch.no_grad():
            terms = objective.terms(batch, state)
        return {(name, term.per): float(term.values.sum()) for name, term in terms.items()}

    before = sums(batch)
    for part, rows in _parts(batch):
        moved = {}
        for path, values in leaves(batch).items():
            field = path.split(".")[0]
            if field in rows and rows[field].any() and len(values) == len(rows[field]):
                inside = rows[field].reshape(-1, *[1] * (values.ndim - 1))
                step = 0.1 * torch.arange(1, values.numel() + 1, dtype=values.dtype).reshape(values.shape)
                moved[path] = torch.where(inside, values - step, values)
        after = sums(with_leaves(batch, moved)) if moved else before
        for (name, unit), value in after.items():
            if abs(value - before[name, unit]) > CHANGED * max(abs(value), abs(before[name, unit])):
                yield unit, part
