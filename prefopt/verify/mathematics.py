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
mathematics on purpose (a documented clamp), which is not compared; ``smooth(examples, *, eps, <hyperparameters>,
**state) -> bool``, False where rounding to the precision ``eps`` may carry a batch over a kink, whose gradient is not
compared; and ``ROUNDED``, names of hyperparameters that count as inputs: their rounding to the precision of the batch,
too, may move a derivative.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from prefopt.core.batches import Batch, Completions, Ranked, Rollouts
from prefopt.core.errors import UsageError
from prefopt.core.labels import Axis, labels_of
from prefopt.core.loss import State
from prefopt.core.objective import Objective
from prefopt.verify.evaluation import Curvature, evaluate, loss_of, state_of
from prefopt.verify.leaves import cast, leaves, mask_of
from prefopt.verify.results import PASSED, Outcome
from prefopt.verify.search import Trial

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
DIGITS = 60
STEP = "1e-24"
"""Of the differences that stand for derivatives: so short that what curves is straight to 1e-16 over it, also where
the second derivative is 1e8 times the first."""
NUDGE = "1e-9"
"""Of a hyperparameter, relative to it."""
NOISE = 1e-17
SMALL = 1e-3
UNITS = 4
"""Of the last place of the largest derivative of an example: what is left where two of that size cancel."""
LARGEST = 1e4
"""Log-probs are drawn up to here."""
JUMP = 1e-9


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

    def smooth(self, objective: Objective, batch: Batch, state: State) -> bool:
        """Whether the batch is further from every kink than its rounding."""
        smooth = getattr(self.module, "smooth", None)
        if smooth is None:
            return True
        eps = torch.finfo(batch.rows.logps.dtype).eps
        with _mpmath().workdps(DIGITS):
            return bool(smooth(Examples(batch).list(), eps=eps, **self.arguments(objective, state)))

    def value(self, objective: Objective, batch: Batch, state: State) -> Any:
        """The loss to `DIGITS` digits, as an mpf."""
        with _mpmath().workdps(DIGITS):
            return self.module.loss(Examples(batch).list(), **self.arguments(objective, state))

    def slopes(self, objective: Objective, batch: Batch, state: State) -> "Slopes":
        """The loss, and its derivatives one at a time."""
        return Slopes(self, objective, batch, state)

    def derivatives(self, objective: Objective, batch: Batch, state: State) -> Iterator[tuple[str, tuple, Any, Any]]:
        """For every entry of every leaf: its path, its index, and the derivatives from the left and from the right."""
        slopes = self.slopes(objective, batch, state)
        for path, index in entries(batch):
            yield path, index, slopes.left(path, index), slopes.right(path, index)


class Slopes:
    """The loss of a reference on one batch, and its derivatives from either side in one entry of a leaf at a time."""

    def __init__(self, reference: Reference, objective: Objective, batch: Batch, state: State) -> None:
        self._loss = reference.module.loss
        self._rounded = getattr(reference.module, "ROUNDED", ())
        self._arguments = reference.arguments(objective, state)
        self._known: dict[tuple[str, tuple, Any], Any] = {}
        with _mpmath().workdps(DIGITS):
            self._examples = Examples(batch)  # which divides, and must not round
            self.value = self._loss(self._examples.list(), **self._arguments)

    def left(self, path: str, index: tuple) -> Any:
        return self._slope(path, index, -_mpmath().mpf(STEP))

    def right(self, path: str, index: tuple) -> Any:
        return self._slope(path, index, _mpmath().mpf(STEP))

    def of_hyperparameters(self, path: str, index: tuple) -> float:
        """Σ|θ ∂g/∂θ| over the hyperparameters θ that count as inputs, g the derivative from the right."""
        mp, total = _mpmath(), 0.0
        for name in self._rounded:
            with mp.workdps(DIGITS):
                moved = {**self._arguments, name: self._arguments[name] * (1 + mp.mpf(NUDGE))}
                here = self._loss(self._examples.list(), **moved)
                there = self._loss(self._examples.list(path, index, mp.mpf(STEP)), **moved)
                total += float(abs((there - here) / mp.mpf(STEP) - self.right(path, index)) / mp.mpf(NUDGE))
        return total

    def _slope(self, path: str, index: tuple, step: Any) -> Any:
        if (path, index, step) not in self._known:
            with _mpmath().workdps(DIGITS):
                moved = self._loss(self._examples.list(path, index, step), **self._arguments)
                self._known[path, index, step] = (moved - self.value) / step
        return self._known[path, index, step]


def entries(batch: Batch) -> Iterator[tuple[str, tuple]]:
    """Path and index of every floating input that counts."""
    for path in leaves(batch):
        for index in mask_of(batch, path).nonzero().tolist():
            yield path, tuple(index)


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
        self._counted: dict[str, Sequence[Sequence[int]]] = {}
        makers = {Ranked: self._group, Rollouts: self._rollout}
        self._make = makers.get(type(batch), self._example)
        self._still = [self._make(i, self._values, self._values) for i in range(batch.counts()["example"])]

    def list(self, path: str = "", index: tuple = (), step: Any = 0) -> list[SimpleNamespace]:
        """One namespace per example; the input at ``path`` and ``index`` moved by ``step``."""
        examples = [*self._still]
        if path and not path.startswith("mismatched"):  # those belong to no example
            i = _example_of(self._batch, index)
            examples[i] = self._make(i, {**self._values, path: _moved(self._values[path], index, step)}, self._values)
        return examples

    def _positions(self, prefix: str, rows: Completions, i: int) -> Sequence[int]:
        """Which positions of a completion count; where only its sum is known, one per token."""
        if prefix not in self._counted:
            if rows.tokens is None:
                self._counted[prefix] = [list(range(max(length, 1))) for length in rows.lengths.tolist()]
            else:
                self._counted[prefix] = [[t for t, on in enumerate(row) if on] for row in rows.tokens.mask.tolist()]
        return self._counted[prefix][i]

    def _completion(self, rows: Completions, prefix: str, i: int, values: Mapping) -> SimpleNamespace:
        positions, rewards = self._positions(prefix, rows, i), values.get(f"{prefix}.rewards")
        one = SimpleNamespace(rewards=None if rewards is None else rewards[i])
        for name in ("logps", "ref_logps", "kl", "log_sum_p2"):
            if rows.tokens is not None:
                column = values.get(f"{prefix}.tokens.{name}")
                found = None if column is None else [column[i][t] for t in positions]
            else:
                # Spread the sum evenly. Where the reference needs more, the objective needs per-token values.
                column = values.get(f"{prefix}.{name}")
                found = None if column is None else [column[i] / len(positions)] * len(positions)
            setattr(one, name, found)
        return one

    def _with_constant(self, rows: Completions, prefix: str, i: int, moved: Mapping, fixed: Mapping) -> SimpleNamespace:
        """A completion, and ``detached``, the same with nothing moved."""
        one = self._completion(rows, prefix, i, moved)
        one.detached = self._completion(rows, prefix, i, fixed)
        return one

    def _rollout(self, i: int, moved: Mapping, fixed: Mapping) -> SimpleNamespace:
        batch = self._batch
        counted = self._positions("completions", batch.completions, i)

        def columns(values: Mapping) -> dict[str, Any]:
            found = {label.name: values.get(label.name) for label in labels_of(Rollouts.kind, Axis.TOKEN)}
            return {name: None if column is None else [column[i][t] for t in counted] for name, column in found.items()}

        completion = self._with_constant(batch.completions, "completions", i, moved, fixed)
        name = self._plain["ids"][i] if "ids" in self._plain else i
        return SimpleNamespace(
            id=name, completion=completion, **columns(moved), detached=SimpleNamespace(**columns(fixed))
        )

    def _group(self, g: int, moved: Mapping, fixed: Mapping) -> SimpleNamespace:
        batch = self._batch
        rows = [i for i, own in enumerate(self._plain["group"]) if own == g]
        example = SimpleNamespace(id=self._plain["ids"][g] if "ids" in self._plain else g)
        example.completions = [self._with_constant(batch.completions, "completions", i, moved, fixed) for i in rows]
        for label in labels_of(Ranked.kind):
            column = moved.get(label.name, self._plain.get(label.name))
            if label.axis is Axis.COMPLETION:
                setattr(example, label.name, None if column is None else [column[i] for i in rows])
            elif label.name != "ids":
                setattr(example, label.name, None if column is None else column[g])
        return example

    def _example(self, i: int, moved: Mapping, fixed: Mapping) -> SimpleNamespace:
        batch, example = self._batch, SimpleNamespace()
        example.id = self._plain["ids"][i] if "ids" in self._plain else i
        for field in fields(batch):
            name, value = field.name, getattr(batch, field.name)
            if isinstance(value, Completions):
                if name != "mismatched":
                    one = self._with_constant(value, name, i, moved, fixed)
                    setattr(example, "completion" if name == "completions" else name, one)
            elif name != "ids":
                column = moved.get(name, self._plain.get(name))
                setattr(example, name, None if column is None else column[i])
        return example


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
    distance = float(abs(_mpmath().mpf(float(value)) - exact))
    floor = max(float(abs(exact)), _floor(batch, dtype))
    if not distance <= TOLERANCE[dtype] * floor:  # the derivatives are needed
        floor = max(floor, sensitivity_of_value(one, batch, state))
    return Outcome(
        distance / floor, TOLERANCE[dtype], f"loss is {float(value):.17g}, the reference says {float(exact):.17g}"
    )


def sensitivity_of_value(one: Trial, batch: Batch, state: State) -> float:
    """|L| + Σ|x ∂L/∂x| in float64, the step's state counted as an input."""
    moved = {name: _wide(value) for name, value in state.items()}
    return Curvature(loss_of(one.objective), cast(batch, torch.float64), moved).value()


def _wide(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _floor(batch: Batch, dtype: torch.dtype) -> float:
    """A scale below which no precision is asked for: subnormal numbers times the largest log-prob, and for lists the
    last digit of the log-sum-exp over a group, whose tail is lost where one response holds all of the mass."""
    if isinstance(batch, Ranked):
        return 1e-3
    return LARGEST * torch.finfo(dtype).tiny / TOLERANCE[dtype]


def check_gradient(reference: Reference, one: Trial, dtype: torch.dtype = torch.float64) -> Outcome:
    """Every partial derivative against differences of the reference, relative to |g| + Σ|x ∂g/∂x|.

    One that is small beside others of its kind may be what two of their size leave: it is held to 1e-3 of the largest,
    and to `UNITS` in the last place of the largest of its own example, moved as far as rounding of the inputs moves it,
    which is more than that in float32.

    Any number between the derivatives from the left and from the right will do: at a kink, however small, they differ.
    """
    batch = one.batch(dtype)
    state, loss = state_of(one.objective, batch), loss_of(one.objective)
    if not reference.compares(one.objective, batch, state) or not reference.smooth(one.objective, batch, state):
        return PASSED
    gradient = evaluate(loss, batch, state).gradient
    largest: dict[Any, tuple[float, str, tuple]] = {}
    for path, index in entries(batch):
        for key in (_kind(path), (_kind(path), _example_of(batch, index))):
            largest[key] = max(largest.get(key, (0.0, path, index)), (abs(float(gradient[path][index])), path, index))
    slopes = reference.slopes(one.objective, batch, state)
    # Differences of the reference carry its own rounding, some 1e-35 of the loss.
    value = abs(float(slopes.value))
    worst, floor = PASSED, _floor(batch, dtype) + NOISE * value
    wide = {name: _wide(part) for name, part in state.items()}
    curvature = Curvature(loss, cast(batch, torch.float64), wide)
    for path, index in entries(batch):
        found, right = float(gradient[path][index]), slopes.right(path, index)
        least = max(floor, SMALL * largest[_kind(path)][0])
        low = high = right
        error = float(abs(right - found)) / max(float(abs(right)), least)
        if not error <= TOLERANCE[dtype]:  # what costs more is done where it is needed
            low, high = sorted((slopes.left(path, index), right))
            if max(-low, high) * float(STEP) > JUMP * value:
                continue  # the score of a tie, which any step breaks
            _, *of_example = largest[_kind(path), _example_of(batch, index)]
            rest = UNITS * torch.finfo(dtype).eps / TOLERANCE[dtype] * curvature.scale(*of_example)
            own = curvature.scale(path, index) + slopes.of_hyperparameters(path, index)
            scale = max(own, float(abs(low)), least, rest)
            error = _apart(low, found, high) / scale
        detail = f"∂L/∂{path}{list(index)} is {found:.17g}, the reference says {float((low + high) / 2):.17g}"
        worst = worst.worse(Outcome(error, TOLERANCE[dtype], detail))
    return worst


def _kind(path: str) -> str:
    return path.split(".")[-1]


def _example_of(batch: Batch, index: tuple) -> int:
    return int(batch.group[index[0]]) if isinstance(batch, Ranked) else index[0]


def _apart(low: Any, found: float, high: Any) -> float:
    """How far a number is from an interval; NaN where it is none."""
    return found if found != found else float(max(low - found, found - high, 0))
