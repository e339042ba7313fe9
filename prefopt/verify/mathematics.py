"""A scalar reference in mpmath, and checks of an objective's value and gradient against it.

A reference is a module with

    def loss(examples, *, <hyperparameters>, **state) -> mpf

the loss of a batch that is a whole step. Each example is a namespace: ``chosen`` and ``rejected`` with ``preference``,
``chosen_score`` and ``rejected_score`` for pairs, ``completion`` (and ``desirable``) for demonstrations and labelled
rows, ``completions`` and ``scores`` for ranked lists, ``completion`` and the lists ``old_logps``, ``advantages``,
``values``, ``old_values`` and ``returns`` over its tokens for rollouts; ``id`` for all. A completion has lists
``logps``, ``ref_logps``, ``kl``, ``log_sum_p2`` over its tokens, ``rewards``, the one number that a reward model gives,
and ``detached``, the same completion as a constant: while a derivative is taken by moving an input, ``detached`` stays
where it was. So does ``detached`` of a rollout.

It may also have ``domain(examples, *, <hyperparameters>, **state) -> bool``, False where the code departs from the
mathematics on purpose (a documented clamp), which is not compared; and ``FLOOR``, a scale below which the value is not
asked for more digits, for a loss that is what terms of that size leave where they cancel.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from prefopt.batches import Batch, Completions, Ranked, Rollouts
from prefopt.errors import UsageError
from prefopt.objective import Objective, State
from prefopt.verify.cases import BY_TOKEN
from prefopt.verify.evaluation import evaluate, loss_of, sensitivity, state_of
from prefopt.verify.leaves import cast, leaves, mask_of
from prefopt.verify.results import PASSED, Outcome
from prefopt.verify.search import Trial

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
DIGITS = 50
STEP = "1e-18"
NOISE = 1e-17
SMALL = 1e-3
JUMP = 1e-9
KINK = 1e-9
"""Left and right derivatives that differ by more than this, relative to the larger, mark a kink."""


def _mpmath() -> Any:
    try:
        import mpmath
    except ImportError as error:
        raise UsageError('checks against a reference need mpmath: pip install "prefopt[test]".') from error
    return mpmath


@dataclass(frozen=True)
class Reference:
    """The mathematics of one objective under its hyperparameters and the state of a step."""

    module: Any

    def arguments(self, objective: Objective, state: State) -> dict[str, Any]:
        """What ``loss`` is called with besides the examples."""
        given: dict[str, Any] = {field.name: getattr(objective, field.name) for field in fields(objective)}
        given |= {name: value.tolist() for name, value in state.items()}
        given = {name: _exact(value) for name, value in given.items()}
        accepted = inspect.signature(self.module.loss).parameters
        if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in accepted.values()):
            return given
        return {name: value for name, value in given.items() if name in accepted}

    def compares(self, objective: Objective, batch: Batch, state: State) -> bool:
        """Whether the code means to follow the mathematics on this batch."""
        domain = getattr(self.module, "domain", None)
        if domain is None:
            return True
        with _mpmath().workdps(DIGITS):
            return bool(domain(Examples(batch).list(), **self.arguments(objective, state)))

    def value(self, objective: Objective, batch: Batch, state: State) -> Any:
        """The loss to `DIGITS` digits, as an mpf."""
        with _mpmath().workdps(DIGITS):
            return self.module.loss(Examples(batch).list(), **self.arguments(objective, state))

    def derivatives(self, objective: Objective, batch: Batch, state: State) -> Iterator[tuple[str, tuple, Any, Any]]:
        """For every entry of every leaf: its path, its index, and the derivatives from the left and from the right."""
        mpmath = _mpmath()
        with mpmath.workdps(DIGITS):
            examples, arguments = Examples(batch), self.arguments(objective, state)
            step = mpmath.mpf(STEP)
            middle = self.module.loss(examples.list(), **arguments)
            for path in leaves(batch):
                for index in mask_of(batch, path).nonzero().tolist():
                    right = self.module.loss(examples.list(path, tuple(index), step), **arguments)
                    left = self.module.loss(examples.list(path, tuple(index), -step), **arguments)
                    yield path, tuple(index), (middle - left) / step, (right - middle) / step


def _exact(value: Any) -> Any:
    if isinstance(value, list):
        return [_exact(item) for item in value]
    return _mpmath().mpf(value) if isinstance(value, float) else value


class Examples:
    """A batch as exact scalars, from which examples are made with at most one input moved."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._values = {path: _exact(value.detach().double().tolist()) for path, value in leaves(batch).items()}
        self._plain = {
            field.name: getattr(batch, field.name).tolist()
            for field in fields(batch)
            if isinstance(getattr(batch, field.name), Tensor) and not getattr(batch, field.name).is_floating_point()
        }

    def list(self, path: str = "", index: tuple = (), step: Any = 0) -> list[SimpleNamespace]:
        """One namespace per example; the input at ``path`` and ``index`` moved by ``step``."""
        moved = dict(self._values)
        if path:
            moved[path] = _moved(moved[path], index, step)
        fixed = self._values if path else moved
        makers = {Ranked: self._group, Rollouts: self._rollout}
        make = makers.get(type(self._batch), self._example)
        return [make(i, moved, fixed) for i in range(self._batch.counts()["example"])]

    def _rollout(self, i: int, moved: Mapping, fixed: Mapping) -> SimpleNamespace:
        batch = self._batch
        counted = batch.tokens.mask[i].nonzero().flatten().tolist()

        def columns(values: Mapping) -> dict[str, Any]:
            found = {name: values.get(name) for name in BY_TOKEN}
            return {name: None if column is None else [column[i][t] for t in counted] for name, column in found.items()}

        completion = _completion(batch.completions, "completions", i, moved)
        completion.detached = _completion(batch.completions, "completions", i, fixed)
        name = self._plain["ids"][i] if "ids" in self._plain else i
        return SimpleNamespace(
            id=name, completion=completion, **columns(moved), detached=SimpleNamespace(**columns(fixed))
        )

    def _group(self, g: int, moved: Mapping, fixed: Mapping) -> SimpleNamespace:
        batch = self._batch
        rows = (batch.group == g).nonzero().flatten().tolist()
        example = SimpleNamespace(id=self._plain["ids"][g] if "ids" in self._plain else g, completions=[])
        for i in rows:
            one = _completion(batch.completions, "completions", i, moved)
            one.detached = _completion(batch.completions, "completions", i, fixed)
            example.completions.append(one)
        for name in ("scores", "ranks"):
            column = moved.get(name, self._plain.get(name))
            setattr(example, name, None if column is None else [column[i] for i in rows])
        return example

    def _example(self, i: int, moved: Mapping, fixed: Mapping) -> SimpleNamespace:
        batch, example = self._batch, SimpleNamespace()
        example.id = self._plain["ids"][i] if "ids" in self._plain else i
        for field in fields(batch):
            name, value = field.name, getattr(batch, field.name)
            if isinstance(value, Completions):
                if name != "mismatched":
                    one = _completion(value, name, i, moved)
                    one.detached = _completion(value, name, i, fixed)
                    setattr(example, "completion" if name == "completions" else name, one)
            elif name != "ids":
                column = moved.get(name, self._plain.get(name))
                setattr(example, name, None if column is None else column[i])
        return example


def _completion(rows: Completions, prefix: str, i: int, values: Mapping) -> SimpleNamespace:
    names = ("logps", "ref_logps", "kl", "log_sum_p2")
    rewards = values.get(f"{prefix}.rewards")
    reward = None if rewards is None else rewards[i]
    if rows.tokens is not None:
        counted = rows.tokens.mask[i].nonzero().flatten().tolist()
        columns = {name: values.get(f"{prefix}.tokens.{name}") for name in names}
        return SimpleNamespace(
            rewards=reward,
            **{name: None if column is None else [column[i][t] for t in counted] for name, column in columns.items()},
        )
    # Only the sum is known: spread it evenly. Where the reference needs more, the objective needs per-token values.
    length = max(int(rows.lengths[i]), 1)
    columns = {name: values.get(f"{prefix}.{name}") for name in names}
    return SimpleNamespace(
        rewards=reward,
        **{name: None if column is None else [column[i] / length] * length for name, column in columns.items()},
    )


def _moved(values: list, index: tuple, step: Any) -> list:
    head, *rest = index
    changed = list(values)
    changed[head] = _moved(values[head], tuple(rest), step) if rest else values[head] + step
    return changed


def check_value(reference: Reference, one: Trial, dtype: torch.dtype = torch.float64) -> Outcome:
    """The loss against the reference on inputs rounded to ``dtype``, relative to |L| + Σ|x ∂L/∂x|."""
    batch = one.batch(dtype)
    state, loss = state_of(one.objective, batch), loss_of(one.objective)
    if not reference.compares(one.objective, batch, state):
        return PASSED
    with torch.no_grad():
        value = loss(batch, state)
    exact = reference.value(one.objective, batch, state)
    scale = sensitivity_of_value(one, batch, state)
    error = float(abs(_mpmath().mpf(float(value)) - exact)) / max(
        scale, _floor(batch, dtype), getattr(reference.module, "FLOOR", 0.0)
    )
    return Outcome(error, TOLERANCE[dtype], f"loss is {float(value):.17g}, the reference says {float(exact):.17g}")


def sensitivity_of_value(one: Trial, batch: Batch, state: State) -> float:
    """|L| + Σ|x ∂L/∂x| in float64, the step's state counted as an input."""
    moved = {name: _wide(value) for name, value in state.items()}
    return sensitivity(loss_of(one.objective), cast(batch, torch.float64), moved, second=False).value


def _wide(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _floor(batch: Batch, dtype: torch.dtype) -> float:
    """A scale below which no precision is asked for: subnormal numbers, and for lists the last digit of the
    log-sum-exp over a group, whose tail is lost where one response holds all of the mass."""
    if isinstance(batch, Ranked):
        return 1e-3
    return torch.finfo(dtype).tiny / TOLERANCE[dtype]


def check_gradient(reference: Reference, one: Trial, dtype: torch.dtype = torch.float64) -> Outcome:
    """Every partial derivative against differences of the reference, relative to |g| + Σ|x ∂g/∂x|.

    One that is small beside others of its kind may be what two of their size leave: it is held to 1e-3 of the largest.

    At a kink any number between the derivatives from the left and from the right will do.
    """
    batch = one.batch(dtype)
    state, loss = state_of(one.objective, batch), loss_of(one.objective)
    if not reference.compares(one.objective, batch, state):
        return PASSED
    gradient = evaluate(loss, batch, state).gradient
    scales = sensitivity(
        loss, cast(batch, torch.float64), {name: _wide(value) for name, value in state.items()}
    ).gradient
    largest: dict[str, float] = {}
    for path, part in gradient.items():
        name, counted = path.split(".")[-1], part[mask_of(batch, path)]
        largest[name] = max(largest.get(name, 0.0), float(counted.abs().max()) if counted.numel() else 0.0)
    worst, floor = PASSED, _floor(batch, dtype)
    # Differences of the reference carry its own rounding, 1e-32 of the loss.
    value = abs(float(reference.value(one.objective, batch, state)))
    floor += NOISE * value
    for path, index, left, right in reference.derivatives(one.objective, batch, state):
        found, scale = float(gradient[path][index]), float(scales[path][index])
        low, high = sorted((left, right))
        if max(-low, high) * float(STEP) > JUMP * value:
            continue  # the score of a tie, which any step breaks
        if high - low > KINK * max(abs(low), abs(high)):
            error = max(low - found, found - high, 0)
        else:
            error = abs(_mpmath().mpf(found) - (low + high) / 2)
        error = float(error) / max(scale, float(abs(low)), floor, SMALL * largest[path.split(".")[-1]])
        detail = f"∂L/∂{path}{list(index)} is {found:.17g}, the reference says {float((left + right) / 2):.17g}"
        worst = worst.worse(Outcome(error, TOLERANCE[dtype], detail))
    return worst
