"""Where an objective drives a policy: its population loss over a few responses, minimised to the last digits.

The policy is a softmax over K responses, so that expectations are finite sums and the minimiser can be compared with
a closed form. First-order methods stop too early for that (a gradient of 1e-11 still allows errors of 1e-6 in the
logits where the loss is flat); `minimise` is Newton's method with the exact Hessian.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt.core.batches import Completions, Demonstrations, Labelled, Pairs, Ranked
from prefopt.core.errors import PrefoptError
from prefopt.core.loss import Loss, State
from prefopt.core.objective import Objective

GRADIENT = 1e-11
FLAT = 1e-12
"""Directions with a curvature below this share of the largest are taken as free (the constant added to all logits)."""


class NoOptimum(PrefoptError):
    """Newton's method found no point with a vanishing gradient."""


@dataclass(frozen=True)
class World:
    """K responses to one prompt.

    Attributes:
        reference: log π_ref, normalised.
        rewards: r.
        sampling: μ, from which the two responses of a pair are drawn independently.
        lengths: of the responses in tokens.
    """

    reference: Tensor
    rewards: Tensor
    sampling: Tensor
    lengths: Tensor

    @classmethod
    def random(cls, seed: int, responses: int = 5) -> "World":
        """Random reference, rewards, sampling distribution and lengths, all of full support."""
        generator = torch.Generator().manual_seed(seed)

        def normal() -> Tensor:
            return torch.randn(responses, generator=generator, dtype=torch.float64)

        lengths = torch.randint(1, 9, (responses,), generator=generator)
        return cls(torch.log_softmax(normal(), 0), normal(), torch.softmax(normal(), 0), lengths)

    def __len__(self) -> int:
        return len(self.reference)

    def bradley_terry(self) -> Tensor:
        """[i, j]: p(i ≻ j) = σ(r_i − r_j)."""
        return torch.sigmoid(self.rewards[:, None] - self.rewards[None, :])

    def regularised(self, scores: Tensor) -> Tensor:
        """log of the distribution ∝ π_ref · exp(scores)."""
        return torch.log_softmax(self.reference + scores, 0)

    def pick(self, policy: Tensor, rows: Tensor) -> Completions:
        """Some of the responses, under a policy given by its log-probabilities."""
        return Completions(logps=policy[rows], lengths=self.lengths[rows], ref_logps=self.reference[rows])


Population = Callable[[Tensor, State], Tensor]
"""The expected loss of a policy (log-probabilities) under a state."""


def expected(loss: Loss, weights: Mapping[str, Tensor] | Tensor, units: Mapping[str, float]) -> Tensor:
    """The loss of a population whose rows have these weights.

    Args:
        weights: of the rows of every term, or of each term by name.
        units: the expected count of every unit but ``example`` and ``group``, which are 1.
    """
    total = torch.zeros((), dtype=torch.float64)
    for name, term in loss.terms.items():
        row = weights if isinstance(weights, Tensor) else weights[name]
        total = total + term.weight * (row * term.values).sum() / {"example": 1.0, "group": 1.0, **units}[term.per]
    return total


def on_pairs(objective: Objective, world: World, preference: Tensor, **labels: Tensor) -> Population:
    """Pairs drawn from μ, labelled by ``preference[i, j]`` = p(i ≻ j). Labels are given as [K, K] over (w, l)."""
    chosen, rejected = (~torch.eye(len(world), dtype=torch.bool)).nonzero(as_tuple=True)
    weights = world.sampling[chosen] * world.sampling[rejected] * preference[chosen, rejected]
    weights = weights / weights.sum()
    units = {"chosen_token": float((weights * world.lengths[chosen]).sum())}
    columns = {name: values[chosen, rejected] for name, values in labels.items()}

    def loss(policy: Tensor, state: State) -> Tensor:
        pairs = Pairs(chosen=world.pick(policy, chosen), rejected=world.pick(policy, rejected), **columns)
        return expected(objective(pairs, state), weights, units)

    return loss


def on_labels(objective: Objective, world: World, good: Tensor, bad: Tensor) -> Population:
    """Rows marked desirable with probability ``good[i]`` and undesirable with ``bad[i]``, which sum to 1 in all."""
    rows = torch.arange(len(world))
    both, desirable = torch.cat([rows, rows]), torch.arange(2 * len(world)) < len(world)
    weights = torch.cat([good, bad])
    units = {"desirable": float(good.sum()), "undesirable": float(bad.sum())}

    def loss(policy: Tensor, state: State) -> Tensor:
        found = objective(Labelled(completions=world.pick(policy, both), desirable=desirable), state)
        by_term = {"desirable": good, "undesirable": bad} if "desirable" in found.terms else weights
        return expected(found, by_term, units)

    return loss


def on_demonstrations(objective: Objective, world: World, data: Tensor) -> Population:
    """Demonstrations drawn from the distribution ``data``."""
    units = {"token": float((data * world.lengths).sum())}

    def loss(policy: Tensor, state: State) -> Tensor:
        batch = Demonstrations(completions=world.pick(policy, torch.arange(len(world))))
        return expected(objective(batch, state), data, units)

    return loss


def on_rankings(
    objective: Objective, world: World, rankings: Sequence[Sequence[int]], weights: Tensor, scored: bool = False
) -> Population:
    """Groups of responses, each in its order from best to worst, with a probability for each group."""
    rows = torch.tensor([row for ranking in rankings for row in ranking])
    group = torch.tensor([g for g, ranking in enumerate(rankings) for _ in ranking])
    ranks = torch.tensor([place for ranking in rankings for place in range(1, len(ranking) + 1)])
    order = {"scores": world.rewards[rows]} if scored else {"ranks": ranks}
    sizes = torch.tensor([len(ranking) for ranking in rankings])
    beats_some = ranks < sizes[group]

    def loss(policy: Tensor, state: State) -> Tensor:
        batch = Ranked(completions=world.pick(policy, rows), group=group, **order)
        found = objective(batch, state)
        # A Plackett–Luce likelihood has no factor for the last response of a group.
        short = {name: len(term.values) < len(rows) for name, term in found.terms.items()}
        by_term = {name: weights[group[beats_some]] if less else weights[group] for name, less in short.items()}
        return expected(found, by_term, {})

    return loss


def optimum(population: Population, responses: int, free: Sequence[str] = (), state: State | None = None) -> Tensor:
    """log π of the policy that minimises a population loss.

    Args:
        population: the expected loss.
        responses: K.
        free: names of scalar state that is minimised over as well (BCO's δ).
        state: the rest of the state, held fixed.
    """

    def function(parameters: Tensor) -> Tensor:
        moved = dict(zip(free, parameters[responses:], strict=True))
        return population(torch.log_softmax(parameters[:responses], 0), {**(state or {}), **moved})

    found = minimise(function, torch.zeros(responses + len(free), dtype=torch.float64))
    return torch.log_softmax(found[:responses], 0)


def minimise(function: Callable[[Tensor], Tensor], start: Tensor, *, steps: int = 500) -> Tensor:
    """A point near ``start`` where the gradient of a function is at most `GRADIENT`, by damped Newton steps.

    Raises:
        NoOptimum: there is none within ``steps``.
    """
    point = start
    for _ in range(steps):
        value, gradient = _first(function, point)
        if float(gradient.norm()) <= GRADIENT:
            # Two more full steps: the gradient vanishes before the point stands still.
            for _ in range(2):
                point = point + _newton(function, point, _first(function, point)[1])
            return point
        point = _line_search(function, point, value, gradient, _newton(function, point, gradient))
    raise NoOptimum(f"no minimum within {steps} steps: the gradient is still {float(gradient.norm()):.3g}.")


def _first(function: Callable[[Tensor], Tensor], point: Tensor) -> tuple[Tensor, Tensor]:
    point = point.detach().requires_grad_()
    value = function(point)
    (gradient,) = torch.autograd.grad(value, point)
    return value.detach(), gradient


def _newton(function: Callable[[Tensor], Tensor], point: Tensor, gradient: Tensor) -> Tensor:
    """−H⁻¹g with every curvature made positive, and nothing along flat directions."""
    hessian = torch.autograd.functional.hessian(function, point.detach())
    curvature, directions = torch.linalg.eigh((hessian + hessian.T) / 2)
    size = curvature.abs()
    inverse = torch.where(size > FLAT * size.max(), 1 / size.clamp(min=1e-300), 0.0)
    return -(directions @ (inverse * (directions.T @ gradient)))


def _line_search(
    function: Callable[[Tensor], Tensor], point: Tensor, value: Tensor, gradient: Tensor, step: Tensor
) -> Tensor:
    # A step of more than a few nats goes where a softmax saturates.
    step = step * min(1.0, 4.0 / float(step.abs().max().clamp(min=1e-300)))
    slope = float(gradient @ step)
    for halvings in range(60):
        candidate = point + 0.5**halvings * step
        found, new_gradient = _first(function, candidate)
        descends = float(found) <= float(value) + 1e-4 * 0.5**halvings * slope
        # Near the minimum values no longer differ, gradients still do.
        if descends or float(new_gradient.norm()) < 0.5 * float(gradient.norm()):
            return candidate
    return point + step
