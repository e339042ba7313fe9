"""Batches of a dataset: their order is that of seed and epoch, and looking at them draws no random number."""

from itertools import chain
from typing import Any

import pytest
import tiny
import torch
from transformers import TrainingArguments

from prefopt.data import TokenizedDataset, prepare_dataset
from prefopt.objectives import get_objective
from prefopt.training.loading import StepLoader, step_loader


@pytest.fixture(scope="module")
def dataset() -> TokenizedDataset:
    return prepare_dataset(tiny.pairs(9), "pairs", tiny.tokenizer())


def loader(dataset: TokenizedDataset, *, name: str = "dpo", seed: int = 1, shuffle: bool = True) -> StepLoader:
    args = TrainingArguments(output_dir="unused", use_cpu=True)
    return step_loader(dataset, args, 4, needs=get_objective(name).needs, seed=seed, shuffle=shuffle)


def order(loader: StepLoader) -> list[list[Any]]:
    return [batch.labels["ids"].tolist() for batch in loader]


def test_without_shuffling_the_order_is_that_of_the_data(dataset: TokenizedDataset) -> None:
    ids = dataset.collate([dataset[i] for i in range(9)]).labels["ids"].tolist()
    assert len(set(ids)) == 9
    assert order(loader(dataset, shuffle=False)) == [ids[:4], ids[4:8], ids[8:]]


def test_every_epoch_and_seed_has_an_order_of_its_own(dataset: TokenizedDataset) -> None:
    one, same = loader(dataset), loader(dataset)
    first = order(one)
    assert order(same) == first
    assert order(loader(dataset, seed=2)) != first
    one.set_epoch(1)
    assert order(one) != first
    assert sorted(chain(*order(one))) == sorted(chain(*first))


@pytest.mark.parametrize(("name", "sizes"), [("dpo", [4, 4, 1]), ("kto", [4, 5]), ("aot_paired", [4, 5])])
def test_a_last_row_alone_joins_where_rows_are_compared(dataset: TokenizedDataset, name: str, sizes: list[int]) -> None:
    assert [len(ids) for ids in order(loader(dataset, name=name))] == sizes


def test_global_random_numbers_are_left_alone(dataset: TokenizedDataset) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    order(loader(dataset))
    assert torch.equal(torch.random.get_rng_state(), before)
