"""Is this loss that loss? Checks of anyone's function of log-probabilities, or of anyone's `Objective`."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from prefopt.core.batches import Batch
from prefopt.core.errors import UsageError
from prefopt.core.loss import State
from prefopt.core.objective import Objective
from prefopt.objectives import get_objective
from prefopt.verify.adapters import Adapted, adapt
from prefopt.verify.cases import Seeded, Source
from prefopt.verify.contract import CONTRACT, finite, reward
from prefopt.verify.diagnosis import Point, diagnose
from prefopt.verify.evaluation import Curvature, Evaluation, evaluate, loss_of, state_of
from prefopt.verify.leaves import cast, leaves, size, take
from prefopt.verify.probes import declared, gradcheck, hyperparameters_act
from prefopt.verify.report import Report
from prefopt.verify.results import PASSED, Finding, Outcome, holds
from prefopt.verify.search import Check, Trial, search, trial

EXACT = 1e-10
SINGLE = 1e-4
PADDED = -1.5
"""What stands in the padding while a cause is looked for: a number, so that counting it shows in the value."""


def verify(
    target: Callable[..., Any] | type[Objective],
    as_: str | None = None,
    *,
    hyperparameters: Mapping[str, Any] | None = None,
    examples: int = 100,
    random: bool = False,
) -> Report:
    """Check whether a loss is the one it is meant to be, or whether an objective keeps to the contract.

    Args:
        target: a function of log-probabilities (`prefopt.verify.adapters` says how its parameters are understood), or
            a subclass of `Objective`.
        as_: the name of the loss that a function is meant to be; an objective may do without.
        hyperparameters: of that loss, where they differ from its defaults and the function does not take them.
        examples: how many batches each check draws.
        random: draw other batches at every run.

    Returns:
        A `Report`; it is true if every check passed, and prints as a table.

    Raises:
        UsageError: an unknown name, or a function whose parameters cannot be understood.
    """
    given = dict(hyperparameters or {})
    if inspect.isclass(target) and issubclass(target, Objective):
        return _verify_objective(target, as_, given, examples, random)
    if inspect.isclass(target) or not callable(target):
        what = getattr(target, "__name__", repr(target))
        raise UsageError(f"{what} is neither a function of log-probabilities nor a subclass of Objective.")
    if as_ is None:
        raise UsageError("say which loss the function is meant to be: as_='dpo' (on the command line --as dpo).")
    return _verify_function(target, get_objective(as_, **given), as_, given, examples, random)


def _verify_objective(
    cls: type[Objective], as_: str | None, fixed: dict[str, Any], examples: int, random: bool
) -> Report:
    findings = _search_all(_contract(cls), cls, fixed, examples, random)
    findings += [declared(cls, fixed), hyperparameters_act(cls, fixed)]
    claim, cause = "an objective that keeps to the contract", ""
    if as_ is not None:
        target, claim = get_objective(as_), as_
        tokens = target.needs.tokens or cls(**fixed).needs.tokens
        own = Foreign(target, lambda _, batch, state: cls(**fixed)(batch, state).mean(), tokens=tokens)
        found = _search_all(own.checks(), type(target), _settings(target), examples, random, tokens=tokens)
        cause = own.diagnose() if not all(found) else ""
        findings = [*found, *findings]
    return Report(cls.__name__, claim, tuple(findings), cause)


def _contract(cls: type[Objective]) -> dict[str, Check]:
    return {
        **CONTRACT,
        "reward": reward,
        "gradcheck": gradcheck,
        "finite in float32": lambda one: finite(one, torch.float32),
        "finite in bfloat16": lambda one: finite(one, torch.bfloat16),
    }


def _settings(objective: Objective) -> dict[str, Any]:
    return {field.name: getattr(objective, field.name) for field in dataclasses.fields(objective)}


def _search_all(
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
    found: list[Finding] = []
    for name, check in checks.items():
        found.append(_search(name, check, cls, fixed, examples, random, shrink=all(found), tokens=tokens))
    return found


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
        "gradcheck": {"regime": "ordinary", "rows": 2, "longest": 4},
        "finite in float32": {"regime": "extreme"},
        "finite in bfloat16": {"regime": "extreme"},
        "finite": {"regime": "extreme"},
    }.get(name, {})

    def make(source: Source) -> Trial:
        return trial(source, cls, fixed, **options)

    if name == "gradcheck":
        # Hypothesis would find the kinks, at which finite differences are wrong.
        return search(name, check, make, [make(Seeded(seed)) for seed in range(min(examples, 20))], examples=0)
    return search(
        name, check, make, [make(Seeded(seed)) for seed in range(8)], examples=examples, random=random, shrink=shrink
    )


def _verify_function(
    function: Callable[..., Any], objective: Objective, as_: str, given: dict[str, Any], examples: int, random: bool
) -> Report:
    adapted = adapt(function, objective)
    taken = set(adapted.hyperparameters.values())
    fixed = {name: value for name, value in _settings(objective).items() if name not in taken or name in given}
    subject = Foreign(objective, adapted, tokens=adapted.tokens)
    findings = _search_all(subject.checks(), type(objective), fixed, examples, random, tokens=adapted.tokens)
    cause = "" if all(findings) else subject.diagnose()
    return Report(getattr(function, "__name__", "the function"), _claim(objective, taken), tuple(findings), cause)


def _claim(objective: Objective, taken: Collection[str]) -> str:
    """The loss that a function is held against, with the hyperparameters that it does not take."""
    held = {name: value for name, value in _settings(objective).items() if name not in taken}
    settings = ", ".join(f"{name}={value!r}" for name, value in held.items())
    return f"{objective.name}({settings})" if settings else objective.name


ForeignLoss = Adapted | Callable[[Objective, Batch, State], Tensor]


class Raised(Exception):
    """Someone's loss raised an error."""


class Foreign:
    """Someone's loss next to the objective that it is meant to be."""

    def __init__(self, objective: Objective, loss: ForeignLoss, tokens: bool) -> None:
        self._objective, self._of, self._tokens = objective, loss, tokens

    def _loss(self, objective: Objective, batch: Batch, state: State) -> Tensor:
        try:
            return self._of(objective, batch, state)
        except Exception as error:
            raise Raised(f"{type(error).__name__}: {error}") from error

    def checks(self) -> dict[str, Check]:
        """The checks by name."""
        found: dict[str, Check] = {
            "value": self.value,
            "gradient": self.gradient,
            "value in float32": self.single,
            "rows are independent": self.rows,
            "finite": self.finite,
            "inputs unchanged": self.pure,
        }
        if self._tokens:
            found["padding"] = self.padding
        if self._objective.needs.coupled:
            del found["rows are independent"]
        return {name: _failing_where_it_raises(check) for name, check in found.items()}

    def value(self, one: Trial) -> Outcome:
        """The loss, relative to |L| + Σ|x ∂L/∂x|."""
        return self._compare(one, torch.float64, EXACT)

    def single(self, one: Trial) -> Outcome:
        """The loss in float32 against that of the same inputs in float64."""
        return self._compare(one, torch.float32, SINGLE)

    def _compare(self, one: Trial, dtype: torch.dtype, tolerance: float) -> Outcome:
        batch, exact = self._batch(one, dtype), self._batch(one, torch.float64, like=dtype)
        state = state_of(one.objective, exact)
        scale = Curvature(loss_of(one.objective), exact, state).value()
        expected = float(one.objective(exact, state).mean())
        with torch.no_grad():
            found = float(self._loss(one.objective, batch, _to(state, dtype)))
        error = abs(found - expected) / max(scale, 1e-12)
        return Outcome(error, tolerance, f"the loss is {found:.10g} where it should be {expected:.10g}")

    def gradient(self, one: Trial) -> Outcome:
        """∂L/∂log π of every completion, relative to the largest."""
        batch = self._batch(one)
        state = state_of(one.objective, batch)
        if not math.isfinite(float(one.objective(batch, state).mean())):
            return PASSED
        expected = evaluate(loss_of(one.objective), batch, state)
        found = evaluate(lambda b, s: self._loss(one.objective, b, s), batch, state)
        worst = PASSED
        for path in expected.gradient:
            if path.endswith("ref_logps") or not path.endswith("logps"):
                continue  # a reference is often detached, and nobody trains it
            worst = worst.worse(_gradient(path, found, expected))
        return worst

    def rows(self, one: Trial) -> Outcome:
        """A batch of n is the mean of n batches of one (where the objective's own average says so)."""
        batch = self._batch(one)
        objective, n = one.objective, size(batch)
        state = state_of(objective, batch)
        parts = [take(batch, torch.tensor([i])) for i in range(n)]
        with torch.no_grad():
            own = [objective(part, state).mean() for part in parts]
            whole = objective(batch, state).mean()
            if abs(float(torch.stack(own).mean() - whole)) > 1e-9 * max(abs(float(whole)), 1.0):
                return PASSED  # a mean over tokens is no mean over rows
            found = [self._loss(objective, part, state) for part in parts]
            together = self._loss(objective, batch, state)
        error = float((torch.stack(found).mean() - together).abs()) / max(abs(float(together)), 1e-6)
        return Outcome(error, 1e-8, f"a batch of {n} is not the mean of its rows")

    def finite(self, one: Trial) -> Outcome:
        """Value and gradient are finite wherever the objective's own are, in float32."""
        batch = self._batch(one, torch.float32)
        state = state_of(one.objective, batch)
        if not evaluate(loss_of(one.objective), batch, state).finite:
            return PASSED
        found = evaluate(lambda b, s: self._loss(one.objective, b, s), batch, state)
        return holds(found.finite, f"the loss ({float(found.value)}) or its gradient is not finite in float32")

    def pure(self, one: Trial) -> Outcome:
        """No input is changed."""
        batch = self._batch(one)
        before = {path: value.clone() for path, value in leaves(batch).items()}
        with torch.no_grad():
            self._loss(one.objective, batch, state_of(one.objective, batch))
        after = leaves(batch)
        changed = [
            path for path, value in before.items() if not torch.equal(value.nan_to_num(), after[path].nan_to_num())
        ]
        return holds(not changed, f"{', '.join(changed)} is changed in place")

    def padding(self, one: Trial) -> Outcome:
        """What stands in the padding changes nothing. (NaN there is asked of objectives only.)"""
        values = []
        for fill in (0.0, PADDED):
            batch = one.batch(from_tokens=True, fill=fill, padding=2)
            with torch.no_grad():
                values.append(float(self._loss(one.objective, batch, state_of(one.objective, batch))))
        error = abs(values[0] - values[1]) / max(abs(values[0]), 1e-6)
        return Outcome(
            error, 1e-9, f"the loss is {values[0]:.10g} with 0 in the padding and {values[1]:.10g} with {PADDED} there"
        )

    def diagnose(self) -> str:
        """A mistake that explains the values on a few fixed batches, or an empty string."""
        try:
            points = [self._point(Seeded(seed)) for seed in range(8)]
        except Raised:
            return ""
        if all(abs(point.value - point.expected) <= 1e-9 * max(abs(point.expected), 1.0) for point in points):
            return self._gradient_cause()
        return diagnose(points, self._tokens)

    def _point(self, source: Source) -> Point:
        one = trial(
            source, type(self._objective), _settings(self._objective), regime="ordinary", tokens=self._tokens, longest=9
        )
        options = {"fill": PADDED, "padding": 1} if self._tokens else {}
        batch = self._batch(one, **options)
        state = state_of(one.objective, batch)
        with torch.no_grad():
            value = float(self._loss(one.objective, batch, state))
            return Point(one.objective, batch, state, value, float(one.objective(batch, state).mean()))

    def _gradient_cause(self) -> str:
        one = trial(Seeded(1), type(self._objective), _settings(self._objective), regime="ordinary", rows=2)
        batch = self._batch(one)
        found = evaluate(lambda b, s: self._loss(one.objective, b, s), batch, state_of(one.objective, batch))
        dead = [path for path, part in found.gradient.items() if path.endswith(".logps") and not part.any()]
        if dead:
            return f"no gradient reaches {', '.join(dead)}: it is detached"
        return "right where margins are ordinary; far out it overflows, cancels or is clamped (logsigmoid, log1mexp)"

    def _batch(self, one: Trial, dtype: torch.dtype = torch.float64, like: Any = None, **options: Any) -> Batch:
        if self._tokens:
            options.setdefault("from_tokens", True)
            options.setdefault("fill", 0.0)
        batch = one.batch(like or dtype, **options)
        return cast(batch, dtype) if like else batch


def _failing_where_it_raises(check: Check) -> Check:
    def run(one: Trial) -> Outcome:
        try:
            return check(one)
        except Raised as error:
            return holds(False, f"it raises {error}")

    return run


def _to(state: State, dtype: torch.dtype) -> State:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}


def _gradient(path: str, found: Evaluation, expected: Evaluation) -> Outcome:
    a, b = found.gradient[path], expected.gradient[path]
    a, b = a[expected.masks[path]], b[expected.masks[path]]
    largest = max(float(part.abs().max()) for part in expected.gradient.values())
    error = float((a - b).abs().max()) / max(largest, 1e-12)
    worst = int((a - b).abs().argmax())
    return Outcome(error, 1e-8, f"∂L/∂{path} is {float(a[worst]):.10g} where it should be {float(b[worst]):.10g}")
