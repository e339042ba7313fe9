"""The checks of shapes and types that all other tests run under do find something."""

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation

from prefopt.core.batches import Completions
from prefopt.core.errors import nearest
from prefopt.core.numerics import grouped_log_softmax, log1mexp


@pytest.fixture(autouse=True)
def _checks_are_on() -> None:
    if not hasattr(Completions.__init__, "__wrapped__"):
        pytest.skip("shapes are checked in the quick profile only, and not with PREFOPT_SHAPES=off")


def test_a_size_that_differs_between_fields_is_refused() -> None:
    with pytest.raises(BeartypeCallHintViolation, match="size of dimension n is 4"):
        Completions(logps=torch.zeros(3), lengths=torch.ones(4, dtype=torch.long))


def test_a_size_that_differs_between_arguments_is_refused() -> None:
    same = torch.ones(2, 2, dtype=torch.bool)
    assert grouped_log_softmax(torch.zeros(2), same).shape == (2,)
    with pytest.raises(BeartypeCallHintViolation, match="size of dimension n"):
        grouped_log_softmax(torch.zeros(3), same)


def test_names_of_sizes_are_those_of_one_call() -> None:
    for n in (2, 3):
        Completions(logps=torch.zeros(n), lengths=torch.ones(n, dtype=torch.long))


def test_another_kind_of_number_is_refused() -> None:
    with pytest.raises(BeartypeCallHintViolation, match="int64"):
        log1mexp(torch.zeros(3, dtype=torch.long))


def test_functions_without_shapes_are_checked_too() -> None:
    with pytest.raises(BeartypeCallHintViolation):
        nearest(3, ["a"])
