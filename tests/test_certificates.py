"""Every registered objective × every check. An objective without a reference in ``tests/reference`` fails."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from references import reference

from prefopt import objectives
from prefopt.registry import REGISTRY, Entry
from prefopt.verify.cases import Seeded, Source
from prefopt.verify.contract import CONTRACT, finite, reward
from prefopt.verify.mathematics import check_gradient, check_value
from prefopt.verify.probes import declared, gradcheck, hyperparameters_act, same_loss
from prefopt.verify.results import Outcome
from prefopt.verify.search import Trial, corners, search, trial

NAMES = objectives.names()

FULL = 1000
"""Examples of each property in the full and the random profile; the quick one has its own number for each check."""


@dataclass(frozen=True)
class Case:
    """A check with what its batches look like, and how many are drawn in the quick profile after the fixed ones."""

    check: Callable[[Trial], Outcome]
    examples: int = 3
    regime: str | None = None
    rows: int | None = None
    tokens: bool | None = None
    longest: int = 400
    several: int = 4
    seeded: bool = False
    """Batches from fixed seeds instead of Hypothesis, which would find the kinks that finite differences cannot."""


def by_reference(check: Callable, dtype: torch.dtype) -> Callable:
    def run(one: Trial) -> Outcome:
        return check(reference(type(one.objective).name), one, dtype)

    return run


CASES = {
    "value float64": Case(by_reference(check_value, torch.float64), examples=10),
    "value float32": Case(by_reference(check_value, torch.float32)),
    "gradient float64": Case(by_reference(check_gradient, torch.float64), longest=6, several=2),
    "gradient float32": Case(by_reference(check_gradient, torch.float32), examples=2, longest=6, several=2),
    "gradcheck": Case(gradcheck, regime="ordinary", longest=4, rows=2, seeded=True),
    "reward": Case(reward),
    "finite float32": Case(lambda one: finite(one, torch.float32), regime="extreme", longest=6),
    "finite bfloat16": Case(lambda one: finite(one, torch.bfloat16), regime="extreme", longest=6),
    "finite certain": Case(lambda one: finite(one, torch.float32), regime="certain", longest=6),
    **{name: Case(check, tokens=name == "padding" or None) for name, check in CONTRACT.items()},
}


@pytest.mark.parametrize("check", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_certificate(name: str, check: str, profile: str) -> None:
    entry, case = REGISTRY[name], CASES[check]
    options = {"regime": case.regime, "rows": case.rows, "tokens": case.tokens, "longest": case.longest}
    examples = case.examples if profile == "quick" else FULL

    def make(source: Source) -> Trial:
        return trial(source, entry.cls, entry.fixed, **options)

    if case.seeded:
        fixed, examples = [make(Seeded(seed)) for seed in range(examples)], 0
    else:
        fixed = corners(entry.cls, entry.fixed, several=case.several, **options)
    search(check, case.check, make, fixed, examples=examples, random=profile == "random").require()


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
