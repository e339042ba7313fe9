"""Means over rows, however they arrive."""

import pytest
import torch

from prefopt.training.metrics import Means

CPU = torch.device("cpu")


def own(sums: torch.Tensor) -> torch.Tensor:
    return sums


def test_rows_weigh_alike_in_short_and_long_batches() -> None:
    means = Means()
    means.add({"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([4.0])})
    means.add({"a": torch.tensor([10.0])})
    assert means.names == ["a", "b"]
    assert means.drain(own, CPU) == {"a": 4.0, "b": 4.0}
    assert means.names == [] and means.drain(own, CPU) == {}


def test_ranks_are_averaged_by_their_rows() -> None:
    means = Means()
    means.add({"a": torch.tensor([1.0])})
    other = torch.tensor([[[8.0], [3.0]]], dtype=torch.float64)
    assert means.drain(lambda sums: torch.cat([sums, other]), CPU) == {"a": 9 / 4}


def test_a_name_that_only_others_have_counts_nothing_here() -> None:
    means = Means()
    means.add({"a": torch.tensor([1.0])})
    means.expect(["a", "b"])
    assert means.names == ["a", "b"]
    assert means.drain(own, CPU) == {"a": 1.0}


def test_what_is_added_apart_is_forgotten() -> None:
    means = Means()
    means.add({"a": torch.tensor([1.0])})
    with pytest.raises(RuntimeError), means.apart():
        means.add({"a": torch.tensor([50.0])})
        assert means.drain(own, CPU) == {"a": 50.0}
        raise RuntimeError
    assert means.drain(own, CPU) == {"a": 1.0}


def test_the_state_goes_on_where_it_was() -> None:
    means, again = Means(), Means()
    means.add({"a": torch.tensor([1.0, 3.0])})
    again.load(means.state())
    again.add({"a": torch.tensor([5.0])})
    assert again.drain(own, CPU) == {"a": 3.0}
    assert again.state() == {}
