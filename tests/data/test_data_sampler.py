import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.core.errors import UsageError
from prefopt.data import StepSampler


def global_batches(size, batch_size, world, **options):
    """For each global batch, the slices of all ranks."""
    ranks = [list(StepSampler(size, batch_size, world=world, rank=rank, **options)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert len(ranks[0]) == len(StepSampler(size, batch_size, world=world, **options))
    return list(zip(*ranks, strict=True))


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
def test_no_row_is_lost_or_repeated(size, batch_size, world, min_rows):
    if size < max(world, min_rows) or batch_size * world < min_rows:
        with pytest.raises(UsageError):
            StepSampler(size, batch_size, world=world, min_rows=min_rows)
        return
    batches = global_batches(size, batch_size, world, min_rows=min_rows)
    rows = [row for slices in batches for part in slices for row in part]
    assert sorted(rows) == list(range(size))
    for slices in batches:
        assert all(slices)
        assert sum(map(len, slices)) >= min_rows
        assert sum(map(len, slices)) < 2 * batch_size * world


def test_a_small_remainder_joins_the_batch_before_it():
    assert [len(batch) for batch in StepSampler(33, 8, min_rows=2)] == [8, 8, 8, 9]
    assert [len(batch) for batch in StepSampler(33, 8)] == [8, 8, 8, 8, 1]
    assert [[len(part) for part in slices] for slices in global_batches(33, 4, 2, min_rows=2)][-1] == [5, 4]
    assert [[len(part) for part in slices] for slices in global_batches(35, 4, 2)][-1] == [2, 1]


def test_ranks_see_the_steps_of_accumulation():
    two = [sorted(a + b) for a, b in global_batches(64, 4, 2, seed=1)]
    one = list(StepSampler(64, 4, seed=1))
    assert two == [sorted(one[k] + one[k + 1]) for k in range(0, len(one), 2)]


def test_epochs_and_seeds():
    sampler = StepSampler(20, 4, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(StepSampler(20, 4, seed=2)) != first
    assert [row for batch in StepSampler(20, 4, shuffle=False) for row in batch] == list(range(20))


BLOCKS = [True] * 1000 + [False] * 1000
SPLIT_PAIRS = [True, False] * 1000
RARE = [False] * 1800 + [True] * 200


@pytest.mark.parametrize(
    ("labels", "batch_size"), [(BLOCKS, 4), (BLOCKS, 32), (SPLIT_PAIRS, 4), (RARE, 16), (RARE, 32)]
)
@pytest.mark.parametrize("world", [1, 2])
def test_every_batch_mixes_desirable_and_undesirable(labels, batch_size, world):
    labels = np.asarray(labels)
    for epoch in range(2):
        sampler = StepSampler(2000, batch_size, world=world, rank=world - 1, stratify=labels, seed=5)
        sampler.set_epoch(epoch)
        shares = [labels[batch].mean() for batch in sampler]
        assert min(shares) > 0
        assert max(shares) < 1
        assert max(shares) - min(shares) <= 2 / batch_size + 1e-9


def test_stratified_orders_are_random():
    sampler = StepSampler(2000, 4, stratify=BLOCKS)
    order = [row for batch in sampler for row in batch]
    sampler.set_epoch(1)
    assert [row for batch in sampler for row in batch] != order
    desirable = [row for row in order if row < 1000]
    assert desirable != sorted(desirable)
    # Which class comes first is not fixed either.
    assert len({tuple(row < 1000 for row in batch) for batch in sampler}) > 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": 3, "world": 4}, "3 rows, and at least 4"),
        ({"size": 1, "min_rows": 2}, "1 rows, and at least 2"),
        ({"size": 9, "batch_size": 1, "min_rows": 2}, "too small"),
        ({"size": 9, "world": 2, "rank": 2}, "no such slice"),
        ({"size": 9, "stratify": [True]}, "1 entries for 9 rows"),
        ({"size": 2, "stratify": [True, False], "shuffle": False}, "no effect"),
    ],
)
def test_what_cannot_work_is_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        StepSampler(**{"batch_size": 4, **arguments})
