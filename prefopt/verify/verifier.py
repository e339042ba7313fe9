"""Is this loss that loss? Checks of anyone's function of log-probabilities, or of anyone's `Objective`."""

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch

from prefopt.core.errors import UsageError
from prefopt.core.importing import load_target
from prefopt.core.objective import Objective
from prefopt.core.settings import read_settings
from prefopt.objectives import get_objective
from prefopt.verify.adapters import adapt
from prefopt.verify.cases import Seeded, Source
from prefopt.verify.contract import CONTRACT, finite, reward
from prefopt.verify.declaration import undeclared_parts
from prefopt.verify.evaluation import state_of
from prefopt.verify.foreign import Foreign, settings_of
from prefopt.verify.gradients import differences
from prefopt.verify.guard import found, guarded
from prefopt.verify.probes import declared, hyperparameters_act, reaches
from prefopt.verify.report import Report
from prefopt.verify.results import Finding
from prefopt.verify.search import Check, Trial, search, trial
from prefopt.verify.units import units

GRADIENT = "gradient of the value"
REGIMES = ("ordinary", "ordinary", "reference", "equal", "extreme")
COMPARED = 20
"""The batches on which gradients are compared with differences, and their regimes in turn."""

Claim = str | Objective | type[Objective]


def verify(
    target: Callable[..., Any] | type[Objective] | Objective,
    as_: Claim | None = None,
    *,
    hyperparameters: Mapping[str, Any] | None = None,
    examples: int = 100,
    random: bool = False,
) -> Report:
    """Check whether a loss is the one it is meant to be, or whether an objective keeps to the contract.

    Args:
        target: a function of log-probabilities (`prefopt.verify.adapters` says how its parameters are understood), or
            an `Objective`, the class or an object.
        as_: the loss that it is meant to be: its name, ``FILE.py:NAME`` of an objective, or the objective itself. A
            function needs one; an objective may do without.
        hyperparameters: of that loss, where they differ from its defaults and the function does not take them; without
            ``as_``, of the objective.
        examples: how many batches each check draws.
        random: draw other batches at every run.

    Returns:
        A `Report`; it is true if every check passed, and prints as a table.

    Raises:
        UsageError: an unknown name, or a function whose parameters cannot be understood.
    """
    given = dict(hyperparameters or {})
    if isinstance(target, Objective):
        return _verify_objective(type(target), as_, settings_of(target), given, examples, random)
    if inspect.isclass(target) and issubclass(target, Objective):
        return _verify_objective(target, as_, {}, given, examples, random)
    if inspect.isclass(target) or not callable(target):
        what = getattr(target, "__name__", repr(target))
        raise UsageError(f"{what} is neither a function of log-probabilities nor a subclass of Objective.")
    if as_ is None:
        raise UsageError("say which loss the function is meant to be: as_='dpo' (on the command line --as dpo).")
    return _verify_function(target, _claimed(as_, given), given, examples, random)


def _claimed(as_: Claim, given: dict[str, Any]) -> Objective:
    """The objective that a loss is held against."""
    if isinstance(as_, str) and re.fullmatch(r"[^()+*]+:\w+", as_):
        loaded = load_target(as_, "--as")
        if not isinstance(loaded, Objective) and not (inspect.isclass(loaded) and issubclass(loaded, Objective)):
            raise UsageError(f"--as {as_} is not an Objective, and so no loss that another can be held against.")
        as_ = loaded
    if inspect.isclass(as_):
        mistake = undeclared_parts(as_, given)
        if mistake:
            raise UsageError(f"{as_.__name__} cannot be compared with: {mistake}.")
        return read_settings(as_, given, as_.__name__, noun="hyperparameter")
    if isinstance(as_, Objective):
        if given:
            raise UsageError(f"the objective has its hyperparameters already: leave {', '.join(given)} out.")
        return as_
    return get_objective(as_, **given)


def _verify_objective(
    cls: type[Objective],
    as_: Claim | None,
    fixed: dict[str, Any],
    given: dict[str, Any],
    examples: int,
    random: bool,
) -> Report:
    claim = "an objective that keeps to the contract"
    if as_ is None and given:
        read_settings(cls, given, cls.__name__, noun="hyperparameter")
        fixed, given = {**fixed, **given}, {}
    mistake = undeclared_parts(cls, fixed)
    if mistake:
        return Report(cls.__name__, claim, (Finding("declaration", False, detail=mistake),))
    objective, target = cls(**fixed), None
    if as_ is not None:
        target = _claimed(as_, given)
        if not target.needs.batch.offers(objective.needs.batch):
            raise UsageError(
                f"{cls.__name__} takes {objective.needs.batch.kind} and {_name(target)} takes "
                f"{target.needs.batch.kind}: there is no batch on which the two could be compared."
            )
    findings = [*search_all(contract_of(), cls, fixed, examples, random), *probes_of(cls, fixed)]
    if target is None:
        return Report(cls.__name__, claim, tuple(findings), unproved=_unproved(cls, objective.needs.detaches))
    tokens = target.needs.tokens or objective.needs.tokens
    # Its state is its own: what another loss prepares for a step may have other names.
    own = Foreign(
        target,
        lambda _, batch, state: objective(batch, state_of(objective, batch)).mean(),
        tokens=tokens,
        takes_state=False,
    )
    compared = search_all(own.checks(), type(target), settings_of(target), examples, random, tokens=tokens)
    cause = own.diagnose() if not all(compared) else ""
    return Report(cls.__name__, _name(target), (*compared, *findings), cause)


def _unproved(cls: type[Objective], detaches: tuple[str, ...]) -> str:
    """What a contract cannot show, and how to show it."""
    said = (
        "Not proved: that this is the loss of its paper. Write the paper's equation as a function of log-probabilities "
        f"and compare: prefopt verify FILE.py:FUNCTION --as FILE.py:{cls.__name__}"
    )
    if not detaches:
        return said
    return f"Taken on trust: that the paper's gradient holds {', '.join(detaches)} constant, as needs declares.\n{said}"


def probes_of(cls: type[Objective], fixed: Mapping[str, Any]) -> list[Finding]:
    """What is asked of an objective as a whole, on batches of each question's own."""
    return [
        found("units", partial(units, cls, fixed)),
        found("a gradient", partial(reaches, cls, fixed)),
        found("declared inputs", partial(declared, cls, fixed)),
        found("hyperparameters", partial(hyperparameters_act, cls, fixed)),
    ]


def contract_of() -> dict[str, Check]:
    """What every objective must keep to on each batch."""
    checks = {
        **CONTRACT,
        "reward": reward,
        GRADIENT: differences,
        "finite in float32": lambda one: finite(one, torch.float32),
        "finite in bfloat16": lambda one: finite(one, torch.bfloat16),
    }
    return {name: guarded(check) for name, check in checks.items()}


def search_all(
    checks: Mapping[str, Check],
    cls: type[Objective],
    fixed: Mapping[str, Any],
    examples: int,
    random: bool,
    tokens: bool = False,
) -> list[Finding]:
    """Every check; the first that fails is shrunk, which is the one that a report shows.

    ``tokens``: draw completions token by token, although the objective of ``cls`` may need their sums only.
    """
    findings: list[Finding] = []
    for name, check in checks.items():
        findings.append(_search(name, check, cls, fixed, examples, random, shrink=all(findings), tokens=tokens))
    return findings


def _search(
    name: str,
    check: Check,
    cls: type[Objective],
    fixed: Mapping[str, Any],
    examples: int,
    random: bool,
    shrink: bool = True,
    tokens: bool = False,
) -> Finding:
    options: dict[str, Any] = {"tokens": tokens or None, "longest": 60}
    options |= {
        "padding": {"tokens": True},
        "finite in float32": {"regime": "extreme"},
        "finite in bfloat16": {"regime": "extreme"},
        "finite": {"regime": "extreme"},
    }.get(name, {})

    def make(source: Source) -> Trial:
        return trial(source, cls, fixed, **options)

    if name == GRADIENT:
        return _search_gradient(check, cls, fixed, shrink and examples > 0)
    return search(
        name, check, make, [make(Seeded(seed)) for seed in range(8)], examples=examples, random=random, shrink=shrink
    )


def _search_gradient(check: Check, cls: type[Objective], fixed: Mapping[str, Any], shrink: bool) -> Finding:
    """Seeded batches of every regime. Only where one fails, Hypothesis looks for a smaller one."""
    options = {"longest": 4}
    seeded = [
        trial(Seeded(seed), cls, fixed, regime=REGIMES[seed % len(REGIMES)], rows=1 + seed % 4, **options)
        for seed in range(COMPARED)
    ]
    finding = search(GRADIENT, check, lambda source: trial(source, cls, fixed), seeded, examples=0)
    if finding or not shrink:
        return finding
    smaller = search(
        GRADIENT, check, lambda source: trial(source, cls, fixed, regime="ordinary", **options), examples=COMPARED
    )
    return finding if smaller else smaller


def _verify_function(
    function: Callable[..., Any], objective: Objective, given: dict[str, Any], examples: int, random: bool
) -> Report:
    adapted = adapt(function, objective)
    taken = set(adapted.hyperparameters.values())
    fixed = {name: value for name, value in settings_of(objective).items() if name not in taken or name in given}
    subject = Foreign(objective, adapted, tokens=adapted.tokens, takes_state=adapted.takes_state)
    findings = search_all(subject.checks(), type(objective), fixed, examples, random, tokens=adapted.tokens)
    cause = "" if all(findings) else subject.diagnose()
    return Report(getattr(function, "__name__", "the function"), _claim(objective, taken), tuple(findings), cause)


def _claim(objective: Objective, taken: Collection[str]) -> str:
    """The loss that a function is held against, with the hyperparameters that it does not take."""
    held = {name: value for name, value in settings_of(objective).items() if name not in taken}
    settings = ", ".join(f"{name}={value!r}" for name, value in held.items())
    return f"{_name(objective)}({settings})" if settings else _name(objective)


def _name(objective: Objective) -> str:
    return objective.name or type(objective).__name__
