"""Someone's loss next to the objective that it is meant to be."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prefopt.core.batches import Batch
from prefopt.core.loss import State
from prefopt.core.objective import Objective
from prefopt.verify.cases import Seeded, Source
from prefopt.verify.diagnosis import Point, diagnose
from prefopt.verify.evaluation import Curvature, Evaluation, evaluate, loss_of, state_of
from prefopt.verify.gradients import is_trained
from prefopt.verify.guard import guarded
from prefopt.verify.leaves import cast, leaves, size, take
from prefopt.verify.results import PASSED, Outcome, holds
from prefopt.verify.search import Check, Trial, trial

EXACT = 1e-10
SINGLE = 1e-4
DIGITS = 4
"""Of numbers near 1, the units in the last place to which every loss is good enough."""
PADDED = -1.5
"""What stands in the padding while a cause is looked for: a number, so that counting it shows in the value."""

ForeignLoss = Callable[[Objective, Batch, State], Tensor]


class Foreign:
    """Someone's loss next to the objective that it is meant to be.

    Args:
        objective: What it is meant to be.
        loss: Someone's loss.
        tokens: Whether it takes completions token by token.
        takes_state: Whether it is given the state of the step, instead of working it out from its batch.
    """

    def __init__(self, objective: Objective, loss: ForeignLoss, *, tokens: bool, takes_state: bool) -> None:
        self._objective, self._loss, self._tokens = objective, loss, tokens
        self._takes_state = takes_state

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
        return {name: guarded(check) for name, check in found.items()}

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
        # A constant of the size of 1 may stand between the inputs and a small loss, as log n in a mean of exponentials.
        error = abs(found - expected) / max(scale, DIGITS * torch.finfo(dtype).eps / tolerance)
        return Outcome(error, tolerance, f"the loss is {found:.10g} where it should be {expected:.10g}")

    def gradient(self, one: Trial) -> Outcome:
        """∂L/∂x of every input that is trained, relative to the largest."""
        batch = self._batch(one)
        state = state_of(one.objective, batch)
        if not math.isfinite(float(one.objective(batch, state).mean())):
            return PASSED
        expected = evaluate(loss_of(one.objective), batch, state)
        found = evaluate(lambda b, s: self._loss(one.objective, b, s), batch, state)
        worst = PASSED
        for path in expected.gradient:
            if not is_trained(path):
                continue  # a reference is often detached, and nobody trains it
            worst = worst.worse(_gradient(path, found, expected))
        return worst

    def rows(self, one: Trial) -> Outcome:
        """A batch of n is the mean of n batches of one (where the objective's own average says so)."""
        batch = self._batch(one)
        objective, n = one.objective, size(batch)
        state = state_of(objective, batch)
        parts = [take(batch, torch.tensor([i])) for i in range(n)]
        # What a function is not given it works out from its batch: to it, each row is a step of its own.
        states = [state if self._takes_state else state_of(objective, part) for part in parts]
        with torch.no_grad():
            own = [objective(part, one_).mean() for part, one_ in zip(parts, states, strict=True)]
            whole = objective(batch, state).mean()
            if abs(float(torch.stack(own).mean() - whole)) > 1e-9 * max(abs(float(whole)), 1.0):
                return PASSED  # neither a mean over tokens nor a loss of the whole step is a mean over rows
            found = [self._loss(objective, part, one_) for part, one_ in zip(parts, states, strict=True)]
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
        except Exception:  # which the checks have reported
            return ""
        if all(abs(point.value - point.expected) <= 1e-9 * max(abs(point.expected), 1.0) for point in points):
            return self._gradient_cause()
        return diagnose(points, self._tokens)

    def _point(self, source: Source) -> Point:
        one = trial(
            source,
            type(self._objective),
            settings_of(self._objective),
            regime="ordinary",
            tokens=self._tokens,
            longest=9,
        )
        options = {"fill": PADDED, "padding": 1} if self._tokens else {}
        batch = self._batch(one, **options)
        state = state_of(one.objective, batch)
        with torch.no_grad():
            value = float(self._loss(one.objective, batch, state))
            return Point(one.objective, batch, state, value, float(one.objective(batch, state).mean()))

    def _gradient_cause(self) -> str:
        one = trial(Seeded(1), type(self._objective), settings_of(self._objective), regime="ordinary", rows=2)
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


def settings_of(objective: Objective) -> dict[str, Any]:
    """The hyperparameters of an objective by name."""
    return {field.name: getattr(objective, field.name) for field in dataclasses.fields(objective)}


def _to(state: State, dtype: torch.dtype) -> State:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}


def _gradient(path: str, found: Evaluation, expected: Evaluation) -> Outcome:
    a, b = found.gradient[path], expected.gradient[path]
    a, b = a[expected.masks[path]], b[expected.masks[path]]
    largest = max(float(part.abs().max()) for path, part in expected.gradient.items() if is_trained(path))
    error = float((a - b).abs().max()) / max(largest, 1e-12)
    worst = int((a - b).abs().argmax())
    return Outcome(error, 1e-8, f"∂L/∂{path} is {float(a[worst]):.10g} where it should be {float(b[worst]):.10g}")
