"""Value and gradient of an objective over every floating input, and the scales against which errors are measured."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prefopt.core.batches import Batch
from prefopt.core.loss import Loss, State
from prefopt.core.objective import Objective
from prefopt.verify.leaves import leaves, mask_of, with_leaves


@dataclass(frozen=True)
class Evaluation:
    """A loss, its gradient for each leaf (zeros where it does not depend on it), and the inputs it was taken at."""

    value: Tensor
    gradient: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]

    @property
    def finite(self) -> bool:
        """Whether the value and all gradients are finite numbers."""
        return all(bool(torch.isfinite(part).all()) for part in (self.value, *self.gradient.values()))

    @property
    def scale(self) -> float:
        """|L| + Σ |xᵢ ∂L/∂xᵢ|: how far rounding of the inputs alone can move the value, in units of their precision."""
        terms = (
            (self.inputs[path][self.masks[path]] * gradient[self.masks[path]]).abs().sum()
            for path, gradient in self.gradient.items()
        )
        return float(self.value.abs() + sum(terms))

    def flat(self) -> Tensor:
        """The value and every gradient that counts, in one vector."""
        parts = [self.gradient[path][self.masks[path]].flatten() for path in sorted(self.gradient)]
        return torch.cat([self.value.reshape(1), *parts]).double()


LossOf = Callable[[Batch, State], Tensor]


def loss_of(objective: Objective, denominators: Mapping[str, float] | None = None) -> LossOf:
    """The scalar loss of a batch under a given state, without the metrics that a call computes besides."""

    def loss(batch: Batch, state: State) -> Tensor:
        batch = objective.view(batch)
        counts = objective.counts(batch) if denominators is None else denominators
        return Loss(terms=objective.terms(batch, state), metrics={}, counts={}).reduce(counts)

    return loss


def state_of(objective: Objective, batch: Batch) -> State:
    """The state of a step that consists of this batch alone."""
    with torch.no_grad():
        batch = objective.view(batch).detach()
        initial = {
            name: value.to(batch.rows.logps.dtype) if value.is_floating_point() else value
            for name, value in objective.init_state().items()
        }
        return objective.prepare(initial, observed_of(objective, batch))


def observed_of(objective: Objective, batch: Batch) -> dict[str, Tensor]:
    """What a trainer would observe of a batch: nothing, unless ``needs`` says so."""
    return objective.observe(batch) if objective.needs.observes else {}


def evaluate(
    loss: LossOf, batch: Batch, state: State, *, transform: Callable[[Batch], Batch] = lambda batch: batch
) -> Evaluation:
    """Value and gradient over every leaf; ``transform`` changes the batch after its leaves were attached."""
    inputs = {path: value.detach().clone().requires_grad_() for path, value in leaves(batch).items()}
    value = loss(transform(with_leaves(batch, inputs)), state)
    gradients = _gradient(value, list(inputs.values()))
    return Evaluation(
        value=value.detach(),
        gradient={path: part.detach() for path, part in zip(inputs, gradients, strict=True)},
        inputs={path: part.detach() for path, part in inputs.items()},
        masks={path: mask_of(batch, path) for path in inputs},
    )


def _gradient(value: Tensor, inputs: list[Tensor], **options: Any) -> list[Tensor]:
    if not value.requires_grad:
        return [torch.zeros_like(part) for part in inputs]
    found = torch.autograd.grad(value, inputs, allow_unused=True, **options)
    return [torch.zeros_like(part) if one is None else one for part, one in zip(inputs, found, strict=True)]


class Curvature:
    """How rounding of the inputs moves a loss and its gradient, in float64.

    The step's state counts as an input. Second derivatives are taken one entry at a time, when one is asked for.
    """

    def __init__(self, loss: LossOf, batch: Batch, state: State) -> None:
        self._loss, self._batch, self._state = loss, batch, state
        self._masks = [mask_of(batch, path) for path in leaves(batch)]

    @cached_property
    def _first(self) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """The loss, what it is differentiated by, and its gradient by leaf, itself to be differentiated."""
        with _TwiceDifferentiable():
            value, tracked = self._attached()
            gradients = _gradient(value, tracked, create_graph=True)
        return value, tracked, dict(zip(leaves(self._batch), gradients, strict=False))

    def _attached(self) -> tuple[Tensor, list[Tensor]]:
        inputs = {path: value.detach().double().requires_grad_() for path, value in leaves(self._batch).items()}
        moved = {
            name: value.detach().double().requires_grad_() if value.is_floating_point() else value
            for name, value in self._state.items()
        }
        tracked = [*inputs.values(), *(part for part in moved.values() if part.is_floating_point())]
        return self._loss(with_leaves(self._batch, inputs), moved), tracked

    def value(self) -> float:
        """|L| + Σ|x ∂L/∂x|."""
        value, tracked = self._attached()
        return float(value.detach().abs()) + self._weighted(tracked, _gradient(value, tracked))

    def scale(self, path: str, index: tuple) -> float:
        """|g| + Σ|x ∂g/∂x| for one entry of the gradient."""
        _, tracked, gradient = self._first
        entry = gradient[path][index]
        second = _gradient(entry, tracked, retain_graph=True)
        return float(entry.detach().abs()) + self._weighted(tracked, second)

    def _weighted(self, tracked: list[Tensor], gradients: list[Tensor]) -> float:
        masks = [*self._masks, *(None for _ in tracked[len(self._masks) :])]
        return _weighted(tracked, gradients, masks)


def _weighted(inputs: list[Tensor], gradients: list[Tensor], masks: list[Tensor | None]) -> float:
    total = 0.0
    for part, gradient, mask in zip(inputs, gradients, masks, strict=True):
        product = (part * gradient).abs()
        total += float((product if mask is None else product[mask]).sum().detach())
    return total


class _TwiceDifferentiable(TorchFunctionMode):
    """`logsigmoid` with all digits of its second derivative σ(x)σ(−x).

    Torch takes σ(−x) as 1 − σ(x) there, which is 0 from x = 37 on: a gradient would seem not to move with its inputs.
    """

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.logsigmoid:
            return func(*args, **(kwargs or {}))
        (x,) = args
        below = x < 0
        return torch.where(below, x, 0.0) - torch.log1p(torch.exp(torch.where(below, x, -x)))


@contextmanager
def replayed_detach(record: list[Tensor], replay: bool) -> Iterator[None]:
    """Record what each `Tensor.detach` returns, or give the recorded values back in the same order.

    A quantity that a loss detaches is a constant to its gradient. To compare that gradient with differences of
    values, the constant must stay what it was while the inputs move.
    """
    original, position = Tensor.detach, iter(list(record))

    def detach(tensor: Tensor) -> Tensor:
        if replay:
            return next(position)
        record.append(original(tensor))
        return record[-1]

    Tensor.detach = detach
    try:
        yield
    finally:
        Tensor.detach = original
