"""Tokenised examples to padded tensors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.data.tokenise import TokenizedExample
from prefopt.errors import UsageError

RANKED = -1


def collate(examples: Sequence[TokenizedExample], pad_token_id: int = 0) -> dict[str, Any]:
    """Pad n examples of one kind on the right, in the order in which `prefopt.batches` lays rows out.

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
        its partner.

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
    batch: dict[str, Any] = {**_pad(rows, pad_token_id), "extras": extras, **_token_values(examples)}
    if all(each.mismatched is not None for each in examples):
        batch["mismatched"] = _pad([_row(each, *each.mismatched) for each in examples], pad_token_id)
    return batch


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


def _token_values(examples: Sequence[TokenizedExample]) -> dict[str, Any]:
    """Per-token labels, which are arrays, flat in row order; the reference's log-probs where they are looked for."""
    names = [name for name, value in examples[0].labels.items() if isinstance(value, np.ndarray)]
    if not names:
        return {}
    tokens = {name: torch.from_numpy(np.concatenate([each.labels[name] for each in examples])) for name in names}
    reference = {"ref_logps": tokens.pop("ref_logps")} if "ref_logps" in tokens else {}
    return {"tokens": tokens, **reference}


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
