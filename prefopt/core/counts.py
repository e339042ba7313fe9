"""Terms → one scalar, with denominators that are global over accumulation steps and ranks."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from prefopt.core.loss import Loss


def global_counts(
    micro_batches: Iterable[Mapping[str, int]],
    gather: Callable[[Tensor], Tensor],
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Add up the counts of all micro-batches of a step, then of all ranks.

    Args:
        micro_batches: ``Batch.counts()`` of each micro-batch of this rank; all with the same keys.
        gather: maps a tensor [1, c] of this rank to [ranks, c] of all of them.
        device: where the gathered tensor must live.

    Returns:
        The denominators of the step, by unit.
    """
    micro_batches = list(micro_batches)
    keys = sorted(micro_batches[0])
    own = [sum(counts[key] for counts in micro_batches) for key in keys]
    total = gather(torch.tensor([own], dtype=torch.float64, device=device)).sum(dim=0)
    return dict(zip(keys, total.tolist(), strict=True))


def step_loss(loss: Loss, denominators: Mapping[str, float], ranks: int = 1) -> Float[Tensor, ""]:
    """This micro-batch's share of the loss of its step.

    Shares of one rank add up over accumulation. Data-parallel training averages gradients over ranks, so every
    share is multiplied by the number of ranks: then the average of the ranks' sums is the loss of the step.
    """
    return ranks * loss.reduce(denominators)


class LossSums:
    """Adds up the terms and counts of many losses, so that their whole is one step however they were split."""

    def __init__(self) -> None:
        self._terms: dict[str, tuple[Tensor | float, str, float]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, loss: Loss) -> None:
        """Add one micro-batch."""
        self._counts.update(loss.counts)
        for name, term in loss.terms.items():
            before = self._terms[name][0] if name in self._terms else 0.0
            self._terms[name] = before + term.values.detach().double().sum(), term.per, term.weight

    def loss(self, everyones: Callable[[list], list]) -> float | None:
        """The loss of all that was added on all ranks; None where nothing was.

        Args:
            everyones: from a list of this rank to those of all, one after the other.
        """
        totals = [(total.item(), per, weight) for total, per, weight in self._terms.values()]
        ranks = everyones([(totals, dict(self._counts))] if totals else [])
        if not ranks:
            return None
        denominators = {unit: max(sum(counts[unit] for _, counts in ranks), 1) for unit in ranks[0][1]}
        return sum(weight * total / denominators[per] for terms, _ in ranks for total, per, weight in terms)
