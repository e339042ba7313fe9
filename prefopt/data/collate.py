"""Tokenised examples to padded tensors, and parts of those."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.core.errors import UsageError
from prefopt.data.tokenize import TokenizedExample

RANKED = -1
ROW_EXTRAS = ("group", "ranks", "scores")
"""Extras with one value for each row, not for each example."""
MISMATCHED = "mismatched_ref_logps"
"""The label with the reference's log-probs of a mismatched row."""


def collate(examples: Sequence[TokenizedExample], pad_token_id: int = 0) -> dict[str, Any]:
    """Pad n examples of one kind on the right, in the order in which `prefopt.core.batches` lays rows out.

    Args:
        examples: at least one. Pairs become 2n rows, all chosen and then all rejected; groups as many rows as they
            have completions, one group after the other; prompts n rows without a completion.
        pad_token_id: what fills the padding.

    Returns:
        ``input_ids`` Long[R, T], ``attention_mask`` Long[R, T] (1 on tokens, 0 on padding), ``completion_mask``
        Bool[R, T] (True where ``input_ids[r, t]`` is a token of the completion that counts), and ``extras``: ``ids``
        Long[n] and whichever of ``desirable`` Bool[n], ``preference``, ``chosen_score``, ``rejected_score``,
        ``rated_margin`` Float[n] every example has; of groups ``group`` Long[R] (from 0), ``ranks`` Long[R] and, where
        every example has them, ``scores`` Float[R]. Of sampled completions ``tokens``: per-token values, flat over the
        K completion tokens in row order, and ``ref_logps`` Float[K] where the reference has been scored. With partners
        also ``mismatched``: the first three again, Long or Bool[n, T'], for each prompt followed by the completion of
        its partner, and their ``ref_logps``.

    Raises:
        UsageError: no examples, or examples of several kinds.
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
    extras = {**_extras(examples), **(_group_extras(examples) if shape == RANKED else {})}
    batch: dict[str, Any] = {**_pad(rows, pad_token_id), "extras": extras, **_token_values(places)}
    if all(each.mismatched is not None for each in examples):
        batch["mismatched"] = _pad([_row(each, *each.mismatched) for each in examples], pad_token_id)
        if all(MISMATCHED in each.labels for each in examples):
            values = np.concatenate([each.labels[MISMATCHED] for each in examples])
            batch["mismatched"]["ref_logps"] = torch.from_numpy(values)
    return batch


def examples_in(batch: Mapping[str, Any]) -> int:
    """How many examples a micro-batch has."""
    return len(batch["extras"]["ids"])


def part(batch: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
    """The examples ``start`` to ``end`` of a micro-batch, as `collate` would have laid them out by themselves.

    Pairs stay pairs and groups stay groups; what is flat over completion tokens goes with its rows.
    """
    chosen, by_token = _rows_of(batch, start, end), tokens_of(batch, start, end)
    extras = {
        name: value[chosen] if name in ROW_EXTRAS else value[start:end] for name, value in batch["extras"].items()
    }
    if "group" in extras:
        extras["group"] = extras["group"] - start
    some = {**_narrow(batch, chosen), "extras": extras}
    if "tokens" in batch:
        some["tokens"] = {name: value[by_token] for name, value in batch["tokens"].items()}
    if "ref_logps" in batch:
        some["ref_logps"] = batch["ref_logps"][by_token]
    if "mismatched" in batch:
        rows, own = batch["mismatched"], torch.zeros_like(chosen[: examples_in(batch)])
        own[start:end] = True
        some["mismatched"] = _narrow(rows, own)
        if "ref_logps" in rows:
            some["mismatched"]["ref_logps"] = rows["ref_logps"][_tokens_in(rows, own)]
    return some


def tokens_of(batch: Mapping[str, Any], start: int, end: int) -> Tensor:
    """Which of the K completion tokens of a micro-batch belong to the examples ``start`` to ``end``, Bool[K]."""
    return _tokens_in(batch, _rows_of(batch, start, end))


def join_reference(batch: dict[str, Any], parts: Sequence[tuple[int, int, Mapping[str, Any]]]) -> None:
    """Give a micro-batch the reference's log-probs of all its `part`s, each with its ``start`` and ``end``."""
    if "ref_logps" not in batch:
        values = torch.cat([some["ref_logps"] for *_, some in parts])
        places = torch.cat([tokens_of(batch, start, end).nonzero()[:, 0] for start, end, _ in parts])
        batch["ref_logps"] = torch.empty_like(values).index_copy(0, places, values)
    if "mismatched" in batch:
        batch["mismatched"]["ref_logps"] = torch.cat([some["mismatched"]["ref_logps"] for *_, some in parts])


def _rows_of(batch: Mapping[str, Any], start: int, end: int) -> Tensor:
    """Which rows belong to these examples, Bool[R]."""
    group = batch["extras"].get("group")
    if group is None:
        # All first completions, then all second ones.
        group = torch.arange(len(batch["input_ids"]), device=batch["input_ids"].device) % examples_in(batch)
    return (group >= start) & (group < end)


def _tokens_in(rows: Mapping[str, Tensor], chosen: Tensor) -> Tensor:
    # What stands at position 0 has nothing before it that could predict it, and is no completion token.
    return chosen.repeat_interleave(rows["completion_mask"][:, 1:].sum(dim=1))


def _narrow(rows: Mapping[str, Tensor], chosen: Tensor) -> dict[str, Tensor]:
    """Some of these rows, padded to the longest of them."""
    width = int(rows["attention_mask"][chosen].sum(dim=1).max())
    return {name: rows[name][chosen][:, :width] for name in ("input_ids", "attention_mask", "completion_mask")}


def _shape(example: TokenizedExample) -> int:
    """How many completions every example of its kind has; `RANKED` where that varies."""
    return RANKED if "ranks" in example.labels else len(example.completions)


def _row(example: TokenizedExample, completion: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    outside = np.zeros(len(example.prompt), dtype=bool)
    return np.concatenate([example.prompt, completion]), np.concatenate([outside, mask])


def _pad(rows: Sequence[tuple[np.ndarray, np.ndarray]], pad_token_id: int) -> dict[str, Tensor]:
    shape = len(rows), max(len(ids) for ids, _ in rows)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    completion_mask = torch.zeros(shape, dtype=torch.bool)
    for number, (ids, mask) in enumerate(rows):
        input_ids[number, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        attention_mask[number, : len(ids)] = 1
        completion_mask[number, : len(ids)] = torch.from_numpy(mask)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}


def _extras(examples: Sequence[TokenizedExample]) -> dict[str, Tensor]:
    extras = {"ids": torch.tensor([example.id for example in examples], dtype=torch.long)}
    for name in ("desirable", "preference", "chosen_score", "rejected_score", "rated_margin", "sampled_by_reference"):
        if all(name in example.labels for example in examples):
            kind = torch.bool if name in ("desirable", "sampled_by_reference") else torch.float32
            extras[name] = torch.tensor([example.labels[name] for example in examples], dtype=kind)
    return extras


def _token_values(places: Sequence[tuple[TokenizedExample, int]]) -> dict[str, Any]:
    """Per-token labels, which are arrays, flat in row order; the reference's log-probs where they are looked for."""
    first = places[0][0].labels if places else {}
    names = [name for name, value in first.items() if isinstance(value, np.ndarray) and name != MISMATCHED]
    tokens = {
        name: torch.from_numpy(np.concatenate([_of_row(each, k, each.labels[name]) for each, k in places]))
        for name in names
    }
    reference = {"ref_logps": tokens.pop("ref_logps")} if "ref_logps" in tokens else {}
    return {**({"tokens": tokens} if tokens else {}), **reference}


def _of_row(example: TokenizedExample, number: int, values: np.ndarray) -> np.ndarray:
    """The values of one completion's tokens, of those of all completions of an example."""
    counts = [int(example.mask(k).sum()) for k in range(len(example.completions))]
    start = sum(counts[:number])
    return values[start : start + counts[number]]


def _group_extras(examples: Sequence[TokenizedExample]) -> dict[str, Tensor]:
    sizes = torch.tensor([len(each.completions) for each in examples])
    extras = {
        "group": torch.arange(len(examples)).repeat_interleave(sizes),
        "ranks": torch.tensor([rank for each in examples for rank in each.labels["ranks"]], dtype=torch.long),
    }
    if all("scores" in each.labels for each in examples):
        scores = [score for each in examples for score in each.labels["scores"]]
        extras["scores"] = torch.tensor(scores, dtype=torch.float32)
    return extras
