"""Means over rows that arrive in micro-batches, on several ranks, between two moments of logging."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Means:
    """Adds up values and how many there were; a mean of batch means would weigh short batches too much."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add per-row values, any number of rows under each name."""
        for name, value in values.items():
            total = value.detach().double().sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
            self._counts[name] = self._counts.get(name, 0) + value.numel()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Start from nothing for the time of a ``with`` block; what was added before is back when it ends."""
        kept = self._sums, self._counts
        self._sums, self._counts = {}, {}
        try:
            yield
        finally:
            self._sums, self._counts = kept

    def state(self) -> dict[str, list[float]]:
        """Sum and count of each value so far, for a checkpoint."""
        return {name: [self._sums[name].item(), self._counts[name]] for name in self.names}

    def load(self, state: Mapping[str, list[float]]) -> None:
        """Go on with the sums and counts of a checkpoint."""
        self._sums = {name: torch.tensor(total, dtype=torch.float64) for name, (total, _) in state.items()}
        self._counts = {name: int(count) for name, (_, count) in state.items()}

    @property
    def names(self) -> list[str]:
        """Of the values that were added since the last `drain`."""
        return sorted(self._sums)

    def expect(self, names: Iterable[str]) -> None:
        """Know names that only other ranks have added values under."""
        for name in names:
            self._sums.setdefault(name, torch.zeros((), dtype=torch.float64))
            self._counts.setdefault(name, 0)

    def drain(self, gather: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """The means over all ranks since the last call. Every rank must know the same names.

        Args:
            gather: maps a tensor [1, m] of this rank to [ranks, m] of all.
            device: where the gathered tensor must live.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name].to(device) for name in names])
        counts = torch.tensor([self._counts[name] for name in names], dtype=torch.float64, device=device)
        sums, counts = gather(torch.stack([sums, counts])[None]).sum(dim=0)
        self._sums, self._counts = {}, {}
        means = zip(names, (sums / counts.clamp(min=1)).tolist(), counts.tolist(), strict=True)
        return {name: mean for name, mean, count in means if count}
