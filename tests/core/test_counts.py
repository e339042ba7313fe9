"""Denominators of a whole step, and sums that do not depend on how it was split."""

import pytest
import torch

from prefopt.core.counts import LossSums, global_counts, step_loss
from prefopt.core.loss import Loss, Term


def loss(values: list[float], tokens: int) -> Loss:
    terms = {
        "first": Term(torch.tensor(values, dtype=torch.float64)),
        "second": Term(torch.tensor(values, dtype=torch.float64), per="token", weight=0.5),
    }
    return Loss(terms=terms, metrics={}, counts={"example": len(values), "token": tokens})


PARTS = [loss([1.0, 2.0], 5), loss([6.0], 2)]
# Σ/3 + Σ/2 over 7 tokens.
WHOLE = 9 / 3 + 0.5 * 9 / 7


def test_counts_add_up_over_micro_batches_and_ranks() -> None:
    def gather(own: torch.Tensor) -> torch.Tensor:
        assert own.tolist() == [[3.0, 7.0]]
        return torch.cat([own, torch.tensor([[1.0, 10.0]], dtype=torch.float64)])

    assert global_counts([part.counts for part in PARTS], gather) == {"example": 4.0, "token": 17.0}


def test_shares_of_micro_batches_add_up_to_the_loss_of_the_step() -> None:
    denominators = global_counts([part.counts for part in PARTS], lambda own: own)
    assert sum(step_loss(part, denominators).item() for part in PARTS) == pytest.approx(WHOLE)


def test_the_average_over_ranks_of_shares_is_the_loss_of_the_step() -> None:
    denominators = {"example": 3.0, "token": 7.0}
    assert sum(step_loss(part, denominators, ranks=2).item() for part in PARTS) / 2 == pytest.approx(WHOLE)


def test_sums_of_many_losses_are_one_step_on_one_rank_or_two() -> None:
    alone, two = LossSums(), [LossSums(), LossSums()]
    for part, rank in zip(PARTS, two, strict=True):
        alone.add(part)
        rank.add(part)
    assert alone.loss(lambda own: own) == pytest.approx(WHOLE)
    said: list[list] = []
    two[1].loss(lambda own: said.append(own) or own)
    assert two[0].loss(lambda own: own + said[0]) == pytest.approx(WHOLE)


def test_of_nothing_there_is_no_loss() -> None:
    assert LossSums().loss(lambda own: own) is None
    # A rank without examples takes the others' counts.
    known = LossSums()
    known.add(PARTS[1])
    said: list[list] = []
    known.loss(lambda own: said.append(own) or own)
    assert LossSums().loss(lambda own: own + said[0]) == pytest.approx(6 + 0.5 * 6 / 2)
