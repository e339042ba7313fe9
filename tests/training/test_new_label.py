"""A label that nobody knew before: declared in the table, a field of a container, and read by an objective."""

from dataclasses import dataclass

import pytest
import tiny
import torch
from helpers import losses, trainer
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.core import About, Needs, Objective, Pairs, Term
from prefopt.core.errors import DataError
from prefopt.core.labels import LABELS, Axis, Label
from prefopt.data import collate, prepare_dataset
from prefopt.data.reasons import Reason
from prefopt.verify.adapters import adapt
from prefopt.verify.cases import Seeded, draw
from prefopt.verify.leaves import leaves, take

CONFIDENCE = Label(
    "confidence",
    Axis.EXAMPLE,
    "how sure the annotator was, 0 to 1",
    containers=("pairs",),
    columns={"pairs": ("confidence", "certainty")},
    optional=True,
    bounds=(0.0, 1.0),
    typical=(0.0, 1.0),
)


@dataclass(frozen=True, kw_only=True)
class ConfidentPairs(Pairs):
    """In the package it would be a field of `Pairs`."""

    confidence: Float[Tensor, " n"] | None = None


@dataclass(frozen=True, kw_only=True)
class Confident(Objective[ConfidentPairs]):
    """A pair counts as much as the annotator was sure of it."""

    about = About(title="Confidence", year=2025, formula="-c log sigmoid(log pi(y_w) - log pi(y_l))")
    needs = Needs(batch=ConfidentPairs, labels=("confidence",))
    name = "confident"

    def terms(self, batch: ConfidentPairs, state: dict) -> dict[str, Term]:
        margin = batch.chosen.logps - batch.rejected.logps
        return {"preference": Term(-batch.confidence * logsigmoid(margin))}

    def reward(self, completions: object) -> Tensor:
        return completions.logps


@pytest.fixture(autouse=True)
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LABELS, "confidence", CONFIDENCE)


def rows(n: int, column: str = "confidence") -> list[dict]:
    return [{**row, column: (i % 5) / 4} for i, row in enumerate(tiny.pairs(n))]


@pytest.mark.parametrize("column", ["confidence", "certainty"])
def test_it_reaches_the_loss(column: str) -> None:
    run = trainer(Confident(), rows(4, column), args={"max_steps": 1, "per_device_train_batch_size": 4})
    batch = run.train_dataset.collate(run.train_dataset.examples)
    assert batch.labels["confidence"].tolist() == [0.0, 0.25, 0.5, 0.75]
    assert batch.part(1, 3).labels["confidence"].tolist() == [0.25, 0.5]
    assert column not in run.train_dataset[0].source.columns
    found = run.scorer.container(run.policy, batch)
    expected = (-found.confidence * logsigmoid(found.chosen.logps - found.rejected.logps)).mean().item()
    run.train()
    assert losses(run)[0] == pytest.approx(expected, rel=1e-5)


def test_rows_without_it_and_out_of_its_bounds_are_told_of() -> None:
    given = rows(4)
    with pytest.raises(DataError, match=r"confident needs 'confidence' \(how sure the annotator was, 0 to 1\)"):
        trainer(Confident(), tiny.pairs(4))
    options = {"labels": ("confidence",), "reader": "confident"}
    data = prepare_dataset([*given, tiny.pairs(1)[0], {**given[0], "confidence": 2}], "pairs", tiny.tokenizer(),
                           **options)  # fmt: skip
    assert [(row, cause.reason) for row, cause in data.audit.dropped] == [
        (4, Reason.LACKS_LABELS),
        (5, Reason.OUT_OF_BOUNDS),
    ]
    # Nobody asks for it here, and only some rows have it.
    data = prepare_dataset([*given, tiny.pairs(1)[0]], "pairs", tiny.tokenizer())
    assert "'confidence' is known for 4 of 5 rows only, and is not used" in data.notes
    assert "confidence" not in collate(data.examples).labels


def test_objectives_that_do_not_read_it_say_so(capsys: pytest.CaptureFixture) -> None:
    trainer("dpo", rows(4), args={"max_steps": 1})
    assert "dpo does not use chosen_score, confidence, rejected_score of this data" in capsys.readouterr().err


def test_the_verifier_draws_it_and_hands_it_to_functions() -> None:
    batch = draw(Seeded(0), Confident().needs, rows=5).build()
    assert batch.confidence.shape == (5,) and bool(((batch.confidence >= 0) & (batch.confidence <= 1)).all())
    assert "confidence" in leaves(batch)
    assert torch.equal(take(batch, torch.tensor([3, 1])).confidence, batch.confidence[[3, 1]])

    def loss(logps_chosen: Tensor, logps_rejected: Tensor, confidence: Tensor) -> Tensor:
        return (-confidence * logsigmoid(logps_chosen - logps_rejected)).mean()

    assert adapt(loss, Confident())(Confident(), batch, {}).item() == pytest.approx(Confident()(batch).mean().item())
