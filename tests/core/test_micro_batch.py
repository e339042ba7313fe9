"""Micro-batches: where the completion tokens are, parts, references, and that nothing is changed in place."""

import dataclasses
import pickle

import pytest
import torch
from torch.utils.data._utils import pin_memory

from prefopt.core.errors import UsageError
from prefopt.core.micro_batch import MicroBatch, PaddedRows


def padded() -> PaddedRows:
    """Four rows of up to six tokens; the third has a hole, the last no completion."""
    lengths, starts = torch.tensor([6, 4, 5, 3]), torch.tensor([3, 2, 1, 6])
    place = torch.arange(6)
    attention = place < lengths[:, None]
    counts = attention & (place >= starts[:, None])
    counts[2, 2] = False
    ids = torch.arange(24).reshape(4, 6) * attention
    return PaddedRows(input_ids=ids, attention_mask=attention.long(), completion_mask=counts)


def pairs(**changes: object) -> MicroBatch:
    rows = padded()
    count = int(rows.lengths.sum())
    fields = {
        "rows": rows,
        "labels": {"ids": torch.tensor([7, 9]), "preference": torch.tensor([0.2, 0.9])},
        "ref_logps": -torch.arange(float(count)),
    }
    return MicroBatch(**{**fields, **changes})


def test_a_token_is_predicted_at_the_position_before_it() -> None:
    layout = padded().layout
    assert layout.lengths.tolist() == [3, 2, 3, 0]
    assert layout.row.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert layout.target.tolist() == [3, 4, 5, 8, 9, 13, 15, 16]
    assert layout.predictor.tolist() == [2, 3, 4, 7, 8, 12, 14, 15]


def test_flat_values_become_rows_and_sums() -> None:
    layout, values = padded().layout, torch.arange(1.0, 9.0)
    assert layout.pad(values).tolist() == [[1, 2, 3], [4, 5, 0], [6, 7, 8], [0, 0, 0]]
    summed = layout.completions({"logps": values, "ref_logps": 2 * values})
    assert summed.logps.tolist() == [6, 9, 21, 0] and summed.ref_logps.tolist() == [12, 18, 42, 0]
    kept = layout.completions({"logps": values}, tokens=True)
    assert torch.equal(kept.tokens.mask, layout.mask) and kept.logps.tolist() == summed.logps.tolist()


def test_the_layout_is_computed_once() -> None:
    batch = pairs()
    assert batch.rows.layout is batch.rows.layout
    known = batch.with_reference(torch.zeros(8))
    assert known.rows.layout is batch.rows.layout
    assert batch.to("cpu") is batch


def test_a_reference_makes_another_micro_batch() -> None:
    batch = pairs(ref_logps=None)
    known = batch.with_reference(torch.ones(8))
    assert batch.ref_logps is None
    assert known.ref_logps.tolist() == [1.0] * 8
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.ref_logps = torch.ones(8)


def test_parts_of_pairs_stay_pairs() -> None:
    batch = pairs(mismatched=padded().map(lambda values: values[:2]), mismatched_ref_logps=torch.arange(5.0))
    second = batch.part(1, 2)
    assert second.num_examples == 1
    assert second.labels["preference"].tolist() == pytest.approx([0.9])
    # Rows 1 and 3: the second chosen and the second rejected one, padded to the longer of them.
    assert second.rows.input_ids.tolist() == [[6, 7, 8, 9], [18, 19, 20, 0]]
    assert second.ref_logps.tolist() == [-3, -4]
    assert second.mismatched_ref_logps.tolist() == [3, 4]
    parts = [(0, 1, batch.part(0, 1)), (1, 2, second)]
    joined = dataclasses.replace(batch, ref_logps=None, mismatched_ref_logps=None).with_reference_of(parts)
    assert torch.equal(joined.ref_logps, batch.ref_logps)
    assert torch.equal(joined.mismatched_ref_logps, batch.mismatched_ref_logps)


def test_labels_follow_their_axes() -> None:
    labels = {
        "ids": torch.tensor([5, 6]),
        "group": torch.tensor([0, 0, 0, 1]),
        "scores": torch.tensor([1.0, 2.0, 3.0, 4.0]),
        "advantages": torch.arange(8.0),
    }
    batch = MicroBatch(rows=padded(), labels=labels)
    assert batch.padded_labels["advantages"].tolist() == [[0, 1, 2], [3, 4, 0], [5, 6, 7], [0, 0, 0]]
    assert batch.padded_labels["scores"] is labels["scores"]
    first, last = batch.part(0, 1), batch.part(1, 2)
    assert first.labels["scores"].tolist() == [1, 2, 3] and first.labels["advantages"].tolist() == list(range(8))
    assert last.labels["group"].tolist() == [0] and last.labels["advantages"].tolist() == []


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'preference' has 4 values, and the micro-batch 2 examples"):
        pairs(labels={"ids": torch.arange(2), "preference": torch.zeros(4)})
    with pytest.raises(UsageError, match=r"no label is called 'mood'.*labels\.py"):
        pairs(labels={"ids": torch.arange(2), "mood": torch.zeros(2)})


def test_it_goes_to_another_process_and_back() -> None:
    batch = pairs(mismatched=padded(), mismatched_ref_logps=torch.zeros(8))
    found = pickle.loads(pickle.dumps(batch))
    assert torch.equal(found.rows.completion_mask, batch.rows.completion_mask)
    assert found.labels["ids"].tolist() == [7, 9] and torch.equal(found.ref_logps, batch.ref_logps)


def test_a_data_loader_pins_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda values: pinned.append(values.shape) or values.clone())
    batch = pairs(mismatched=padded(), mismatched_ref_logps=torch.zeros(8))
    found = pin_memory.pin_memory(batch)
    assert isinstance(found, MicroBatch) and found is not batch
    # Three tensors of the rows, three of the mismatched ones, two labels, and two references.
    assert len(pinned) == 10
    assert torch.equal(found.mismatched.input_ids, batch.mismatched.input_ids)
