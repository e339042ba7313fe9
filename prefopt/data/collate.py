"""Tokenized examples to a padded micro-batch."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.core.errors import UsageError
from prefopt.core.labels import LABELS, MISMATCHED_REF_LOGPS, REF_LOGPS, Axis, common
from prefopt.core.micro_batch import MicroBatch, PaddedRows
from prefopt.data.tokenize import TokenizedExample

RANKED = -1
"""In place of the number of completions, where that varies from example to example."""
_DTYPES = {bool: torch.bool, int: torch.long, float: torch.float32}

Places = list[tuple[TokenizedExample, int]]
"""The example of each row, and which of its completions the row holds."""


def collate(examples: Sequence[TokenizedExample], pad_token_id: int = 0) -> MicroBatch:
    """Pad n examples of one kind on the right, in the order of a `MicroBatch`, with the labels that all of them have.

    Args:
        examples: At least one.
        pad_token_id: The token id in the padding.

    Raises:
        UsageError: No examples, examples of several kinds, or a label that is not declared.
    """
    shapes = {_shape(example) for example in examples}
    if len(shapes) != 1:
        raise UsageError("collate needs at least one example, and all of one kind.")
    shape = shapes.pop()
    if shape == RANKED:
        places = [(each, k) for each in examples for k in range(len(each.completions))]
    else:
        places = [(each, k) for k in range(shape) for each in examples]
    rows = [_row(each, each.completions[k], each.mask(k)) for each, k in places]
    if shape == 0:
        nothing = np.empty(0, dtype=np.int32)
        rows = [_row(each, nothing, nothing.astype(bool)) for each in examples]
    labels = _labels(examples, places)
    if shape == RANKED:
        sizes = torch.tensor([len(each.completions) for each in examples])
        labels["group"] = torch.arange(len(examples)).repeat_interleave(sizes)
    mismatched = None
    if all(each.mismatched is not None for each in examples):
        mismatched = _pad([_row(each, *each.mismatched) for each in examples], pad_token_id)
    ref_logps, mismatched_ref_logps = (labels.pop(name, None) for name in (REF_LOGPS, MISMATCHED_REF_LOGPS))
    return MicroBatch(
        rows=_pad(rows, pad_token_id),
        labels=labels,
        mismatched=mismatched,
        ref_logps=ref_logps,
        mismatched_ref_logps=None if mismatched is None else mismatched_ref_logps,
    )


def _shape(example: TokenizedExample) -> int:
    """How many completions every example of its kind has; `RANKED` where that varies."""
    return RANKED if "ranks" in example.labels else len(example.completions)


def _row(example: TokenizedExample, completion: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    outside = np.zeros(len(example.prompt), dtype=bool)
    return np.concatenate([example.prompt, completion]), np.concatenate([outside, mask])


def _pad(rows: Sequence[tuple[np.ndarray, np.ndarray]], pad_token_id: int) -> PaddedRows:
    shape = len(rows), max(len(ids) for ids, _ in rows)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    completion_mask = torch.zeros(shape, dtype=torch.bool)
    for number, (ids, mask) in enumerate(rows):
        input_ids[number, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        attention_mask[number, : len(ids)] = 1
        completion_mask[number, : len(ids)] = torch.from_numpy(mask)
    return PaddedRows(input_ids=input_ids, attention_mask=attention_mask, completion_mask=completion_mask)


def _labels(examples: Sequence[TokenizedExample], places: Places) -> dict[str, Tensor]:
    """The labels that all examples have, along their axes."""
    unknown = sorted({name for example in examples for name in example.labels} - LABELS.keys())
    if unknown:
        raise UsageError(f"no label is called {unknown[0]!r}: declare it in prefopt/core/labels.py.")
    found = {"ids": torch.tensor([example.id for example in examples], dtype=torch.long)}
    for label in common(example.labels for example in examples):
        values = _GATHER[label.axis](label.name, examples, places)
        # Per-token values are arrays already, and keep their precision.
        found[label.name] = (
            torch.from_numpy(values)
            if isinstance(values, np.ndarray)
            else torch.tensor(values, dtype=_DTYPES[label.dtype])
        )
    return found


def _by_example(name: str, examples: Sequence[TokenizedExample], places: Places) -> list[Any]:
    return [example.labels[name] for example in examples]


def _by_completion(name: str, examples: Sequence[TokenizedExample], places: Places) -> list[Any]:
    return [example.labels[name][k] for example, k in places]


def _by_token(name: str, examples: Sequence[TokenizedExample], places: Places) -> np.ndarray:
    return np.concatenate([_of_completion(example, k, example.labels[name]) for example, k in places])


def _by_mismatched_token(name: str, examples: Sequence[TokenizedExample], places: Places) -> np.ndarray:
    return np.concatenate([example.labels[name] for example in examples])


_GATHER: dict[Axis, Callable[[str, Sequence[TokenizedExample], Places], Any]] = {
    Axis.EXAMPLE: _by_example,
    Axis.COMPLETION: _by_completion,
    Axis.TOKEN: _by_token,
    Axis.MISMATCHED_TOKEN: _by_mismatched_token,
}
"""How the values of a label are put together."""


def _of_completion(example: TokenizedExample, number: int, values: np.ndarray) -> np.ndarray:
    """The values of one completion's tokens, of those of all completions of an example."""
    counts = [int(example.mask(k).sum()) for k in range(len(example.completions))]
    start = sum(counts[:number])
    return values[start : start + counts[number]]
