"""Every registered objective × every check. An objective without a reference in ``tests/reference`` fails."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from random import randrange
from typing import Any

import pytest
import torch
from references import reference

from prefopt import objectives
from prefopt.core.needs import Needs
from prefopt.core.registry import REGISTRY, Entry
from prefopt.verify.cases import Draw, Seeded, Source, draw
from prefopt.verify.contract import CONTRACT, finite, reward
from prefopt.verify.gradients import differences
from prefopt.verify.hyperparameters import draw_objective
from prefopt.verify.mathematics import check_gradient, check_value
from prefopt.verify.probes import declared, hyperparameters_act, same_loss
from prefopt.verify.results import Outcome
from prefopt.verify.search import Trial, corners, sample, search, trial

NAMES = objectives.names()

FULL = 1000
"""Examples of each property in the full and the random profile; the quick one has its own number for each check."""


@dataclass(frozen=True)
class Case:
    """A check with what its batches look like, and how many are drawn in the quick profile after the fixed ones."""

    check: Callable[[Trial], Outcome]
    examples: int = 2
    regime: str | None = None
    rows: int | None = None
    tokens: bool | None = None
    longest: int = 400
    several: int = 4
    cheaper: Callable[[Trial], Outcome] | None = None
    """The same for many batches, where it takes too long as it is."""
    few: bool = False
    """In the quick profile, one fixed batch at the defaults instead of one of every regime."""
    seeded: bool = False
    """Batches from fixed seeds instead of Hypothesis, which would find the kinks that finite differences cannot."""

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """Of `trial`, so that they can be a key."""
        return tuple((key, getattr(self, key)) for key in ("regime", "rows", "tokens", "longest"))


def by_reference(check: Callable, dtype: torch.dtype) -> Callable:
    def run(one: Trial) -> Outcome:
        return check(reference(type(one.objective).name), one, dtype)

    return run


CASES = {
    "value float64": Case(by_reference(check_value, torch.float64), examples=6),
    "value float32": Case(by_reference(check_value, torch.float32)),
    "gradient float64": Case(by_reference(check_gradient, torch.float64), longest=6, several=2),
    "gradient float32": Case(by_reference(check_gradient, torch.float32), longest=6, several=2, few=True),
    # Along every entry; of a thousand batches along one direction in each.
    "gradient of the value": Case(
        differences, cheaper=partial(differences, fast=True), regime="ordinary", longest=4, rows=2, seeded=True
    ),
    "reward": Case(reward),
    "finite float32": Case(lambda one: finite(one, torch.float32), regime="extreme", longest=6),
    "finite bfloat16": Case(lambda one: finite(one, torch.bfloat16), regime="extreme", longest=6),
    "finite certain": Case(lambda one: finite(one, torch.float32), regime="certain", longest=6),
    **{name: Case(check, tokens=name == "padding" or None, examples=1, few=True) for name, check in CONTRACT.items()},
}


@pytest.mark.parametrize("check", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_certificate(name: str, check: str, profile: str) -> None:
    case, quick, random = CASES[check], profile == "quick", profile == "random"
    make, property_ = maker(name, case.options), case.check if quick else case.cheaper or case.check
    trials = chain(several_fixed(name, case, few=quick and case.few), many(name, case, profile))
    finding = search(check, property_, make, trials, examples=0)
    if not finding and not case.seeded:
        # Once more for a smaller input. If none fails then, the first one stands.
        smaller = search(check, property_, make, examples=FULL // 10 if quick else FULL, random=random)
        finding = finding if smaller else smaller
    finding.require()


def several_fixed(name: str, case: Case, few: bool) -> Iterable[Trial]:
    """What every profile tries first."""
    if case.seeded:
        return [maker(name, case.options)(Seeded(seed)) for seed in range(case.examples)]
    fixed = fixed_trials(name, case.several, case.options)
    # One at the defaults and one off them, for each regime.
    return [fixed[0], *fixed[1::2]] if few else fixed


@lru_cache(maxsize=16)
def fixed_trials(name: str, several: int, options: tuple) -> list[Trial]:
    """Made once for all checks of an objective that take such batches."""
    return list(corners(REGISTRY[name].cls, REGISTRY[name].fixed, several=several, **dict(options)))


def maker(name: str, options: tuple) -> Callable[[Source], Trial]:
    entry = REGISTRY[name]
    return lambda source: trial(source, entry.cls, entry.fixed, **dict(options))


def many(name: str, case: Case, profile: str) -> Iterable[Trial]:
    """One objective after the other, its hyperparameters from a seed and its batch from Hypothesis."""
    random = profile == "random"
    first = randrange(10**9) if random else case.examples
    if case.seeded:
        yield from (maker(name, case.options)(Seeded(first + i)) for i in range(0 if profile == "quick" else FULL))
        return
    examples = case.examples if profile == "quick" else FULL
    for i in range(examples):
        objective = draw_objective(Seeded(first + i), REGISTRY[name].cls, REGISTRY[name].fixed)
        # What is read besides has no part in a draw.
        needs = replace(objective.needs, lengths=False, coupled=False)
        batches = drawn(needs, case.options, examples, random)
        yield Trial(objective, batches[i % len(batches)])


@lru_cache(maxsize=32)
def drawn(needs: Needs, options: tuple, examples: int, random: bool) -> list[Draw]:
    """Drawn once for all checks and objectives that take such batches: drawing takes longer than most checks do."""
    return sample(lambda source: draw(source, needs, **dict(options)), examples, random=random)


@pytest.mark.parametrize("name", NAMES)
def test_declared_inputs_are_read(name: str) -> None:
    declared(entry(name).cls, entry(name).fixed).require()


@pytest.mark.parametrize("name", NAMES)
def test_every_hyperparameter_acts(name: str) -> None:
    hyperparameters_act(entry(name).cls, entry(name).fixed).require()


@pytest.mark.parametrize("name", NAMES)
def test_no_other_name_is_the_same_loss(name: str) -> None:
    own = entry(name)
    twins = [
        other for other in NAMES if other != name and not presets(own, entry(other)) and same_loss(own, entry(other))
    ]
    assert not twins, f"{name} is the same loss as {', '.join(twins)}"


def presets(a: Entry, b: Entry) -> bool:
    """Whether one is a preset of the other: it names one of its settings, possibly the default one."""
    return a.cls is b.cls and (not a.fixed or not b.fixed)


def entry(name: str) -> Entry:
    return REGISTRY[name]
