"""Whether the gradient of an objective is that of its value: autograd against differences of the value itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt.core.batches import Batch
from prefopt.core.loss import State
from prefopt.core.objective import Objective
from prefopt.verify.evaluation import LossOf, evaluate, loss_of, replayed_detach, state_of
from prefopt.verify.leaves import leaves, with_leaves
from prefopt.verify.results import PASSED, Outcome
from prefopt.verify.search import Trial

STEP = 1e-6
TOLERANCE = 1e-4
SMALL = 1e-3
"""Entries of the gradient are compared relative to themselves, or to this share of the largest."""
DIGITS = 64
"""Of a difference of two losses, the units in the last place that are rounding."""
TRAINED = ("logps", "rewards", "values", "kl", "log_sum_p2")
"""The last word of the paths of inputs through which a gradient reaches the weights that are trained."""


def is_trained(path: str) -> bool:
    """Whether a gradient reaches the trained model through this input.

    A reference is frozen, labels are numbers of the data, and mismatched rows are scored without gradient.
    """
    return path.rpartition(".")[2] in TRAINED and not path.startswith("mismatched")


def differences(one: Trial, *, fast: bool = False) -> Outcome:
    """Autograd agrees with differences of the value over every trained input.

    The value is that of the whole step: where an input moves, what `prepare` makes of it moves too, and what the loss
    detaches as well. Of an objective whose ``needs`` declare that it detaches something, both are held still.

    Args:
        one: The trial.
        fast: Compare along one direction in each input, instead of along every entry.
    """
    batch = one.batch(fill=0.0)
    objective, loss, inputs = one.objective, loss_of(one.objective), leaves(batch)
    state = state_of(objective, batch)
    found = evaluate(loss, batch, state)
    if not found.finite:
        return PASSED  # which is another check's
    value = _held(loss, batch, state) if objective.needs.detaches else _moving(objective, loss)
    trained = [path for path in inputs if is_trained(path)]
    largest = max((float(found.gradient[path].abs().max()) for path in trained if inputs[path].numel()), default=0.0)
    worst = PASSED
    for path in trained:
        for move in _directions(inputs[path], found.masks[path], fast):

            def along(distance: float, path: str = path, move: Tensor = move) -> float:
                return float(value(with_leaves(batch, {**inputs, path: inputs[path] + distance * move})))

            step = _step(inputs[path], move)
            slopes = _Slopes.of(along, step)
            own = float((found.gradient[path] * move).sum())
            error = slopes.apart(own, SMALL * largest)
            index = move.nonzero().tolist()
            where = f"{path}{index[0]}" if len(index) == 1 else f"{path} along one direction"
            worst = worst.worse(Outcome(error, TOLERANCE, _detail(objective, where, own, slopes)))
    return worst


def _detail(objective: Objective, where: str, own: float, slopes: "_Slopes") -> str:
    said = f"the gradient ∂L/∂{where} is {own:.6g}, and differences of the value say {slopes.middle:.6g}"
    if objective.needs.detaches:
        return f"{said} with what `Tensor.detach` returned held still; a constant is detached in no other way"
    return f"{said}; what is detached, or made by `prepare`, must be declared: Needs(detaches='the weights')"


def _moving(objective: Objective, loss: LossOf) -> Callable[[Batch], Tensor]:
    def value(moved: Batch) -> Tensor:
        with torch.no_grad():
            return loss(moved, state_of(objective, moved))

    return value


def _held(loss: LossOf, batch: Batch, state: State) -> Callable[[Batch], Tensor]:
    constants: list[Tensor] = []
    with replayed_detach(constants, replay=False):
        loss(batch, state)

    def value(moved: Batch) -> Tensor:
        with torch.no_grad(), replayed_detach(constants, replay=True):
            return loss(moved, state)

    return value


def _directions(values: Tensor, mask: Tensor, fast: bool) -> Iterator[Tensor]:
    """One step in each entry that counts, or one step of all of them together."""
    if fast:
        order = torch.arange(1, values.numel() + 1, dtype=values.dtype).reshape(values.shape)
        yield torch.where(mask, torch.cos(order), 0.0)
        return
    for index in mask.nonzero().tolist():
        move = torch.zeros_like(values)
        move[tuple(index)] = 1.0
        yield move


def _step(values: Tensor, move: Tensor) -> float:
    """So short that a log-prob stays below 0."""
    near = values[(move != 0) & (values != 0)].abs()
    return min(STEP, 1e-3 * float(near.min())) if near.numel() else STEP


@dataclass(frozen=True)
class _Slopes:
    """Differences of a value in one direction: to the left, to the right, and over both; and how exact they are."""

    left: float
    right: float
    noise: float

    @classmethod
    def of(cls, along: Callable[[float], float], step: float) -> "_Slopes":
        below, here, above = along(-step), along(0.0), along(step)
        noise = DIGITS * torch.finfo(torch.float64).eps * max(abs(below), abs(here), abs(above)) / step
        return cls((here - below) / step, (above - here) / step, noise)

    @property
    def middle(self) -> float:
        return (self.left + self.right) / 2

    def apart(self, gradient: float, floor: float) -> float:
        """How far a gradient is from the differences, relative to both; at a kink any number between the two will do.

        0 where the differences say nothing: the value is no number there.
        """
        low, high = sorted((self.left, self.right))
        if low != low or high - low == float("inf"):
            return 0.0
        distance = min(abs(gradient - self.middle), max(low - gradient, gradient - high, 0.0))
        return max(distance - self.noise, 0.0) / max(abs(gradient), abs(self.middle), floor, 1e-300)
