"""Which rows make up which batch, on every rank."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from prefopt.core.errors import UsageError

# A share of the distance between neighbours of one class; small enough that a batch keeps its mixture.
_JITTER = 0.1


class StepSampler(Sampler[list[int]]):
    """A batch sampler that gives every rank its slice of one common order.

    The order of an epoch is cut into global batches of ``batch_size · world`` rows, and each rank takes a contiguous
    slice of every one; so two ranks at batch 4 see the steps of one rank at batch 4 and accumulation 2. No row is lost
    or repeated, and all ranks have the same number of batches. A remainder of fewer than max(world, min_rows) rows
    joins the batch before it; a larger one is a batch of its own, spread over the ranks.

    Args:
        size: rows of the dataset.
        batch_size: rows per rank and batch.
        world, rank: number of ranks, and which one this is.
        seed: of the order.
        shuffle: a new order in every epoch; False keeps the order of the dataset.
        stratify: a class for each row, such as desirable or not: classes are spread evenly along the order, so that
            every batch mixes them where their shares allow it. Needs ``shuffle``.
        min_rows: the fewest rows that a global batch may have.

    Raises:
        UsageError: fewer rows than ranks or ``min_rows``, or arguments out of range.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        world: int = 1,
        rank: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        stratify: Sequence[Any] | np.ndarray | None = None,
        min_rows: int = 1,
    ) -> None:
        if batch_size < 1 or world < 1 or not 0 <= rank < world:
            raise UsageError(f"batch_size={batch_size}, world={world}, rank={rank}: no such slice of a batch.")
        if batch_size * world < min_rows:
            raise UsageError(
                f"a batch of {batch_size * world} rows is too small: at least {min_rows}; raise batch_size."
            )
        if size < max(world, min_rows):
            need = f"at least {max(world, min_rows)} are needed ({world} ranks, {min_rows} rows in a batch)"
            raise UsageError(f"the dataset has {size} rows, and {need}; use fewer ranks or more data.")
        if stratify is not None and len(stratify) != size:
            raise UsageError(f"stratify has {len(stratify)} entries for {size} rows.")
        if stratify is not None and not shuffle:
            raise UsageError("stratify has no effect with shuffle=False; leave one of them out.")
        self.size, self.batch_size, self.world, self.rank = size, batch_size, world, rank
        self.seed, self.shuffle, self.stratify, self.min_rows = seed, shuffle, stratify, min_rows
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch; the same number gives the same order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._bounds())

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        for start, end in self._bounds():
            yield np.array_split(order[start:end], self.world)[self.rank].tolist()

    def _bounds(self) -> list[tuple[int, int]]:
        step = self.batch_size * self.world
        whole, rest = divmod(self.size, step)
        if rest >= max(self.world, self.min_rows):
            whole += 1
        starts = [step * number for number in range(max(whole, 1))]
        return list(zip(starts, [*starts[1:], self.size], strict=True))

    def _order(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.size)
        random = np.random.default_rng([self.seed, self.epoch])
        if self.stratify is None:
            return random.permutation(self.size)
        return spread(np.asarray(self.stratify), random)


def spread(classes: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A random order of the rows in which every class is spread evenly: row j of k stands near (j + ½) / k."""
    places = np.empty(len(classes))
    for value in np.unique(classes):
        rows = random.permutation(np.flatnonzero(classes == value))
        jitter = random.uniform(-_JITTER, _JITTER, len(rows))
        places[rows] = (np.arange(len(rows)) + 0.5 + jitter) / len(rows)
    return np.argsort(places)
