"""Where the completion tokens of a padded micro-batch are, and how flat per-token values become completions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefopt.core.batches import Completions, TokenLogps


@dataclass(frozen=True)
class Layout:
    """The K completion tokens of R rows, in row order.

    Attributes:
        row: which row each token is in.
        predictor: index, in the flattened [R · T] positions, of the position that predicts the token (the one
            before it; for the first completion token that is the last prompt position).
        target: the token ids.
        lengths: tokens per row.
    """

    row: Int[Tensor, " k"]
    predictor: Int[Tensor, " k"]
    target: Int[Tensor, " k"]
    lengths: Int[Tensor, " r"]

    @classmethod
    def of(cls, input_ids: Int[Tensor, " r t"], completion_mask: Bool[Tensor, " r t"]) -> Self:
        # A token at position 0 has nothing before it that could predict it; the data room lets none through.
        row, column = completion_mask[:, 1:].nonzero(as_tuple=True)
        return cls(
            row=row,
            predictor=row * input_ids.shape[1] + column,
            target=input_ids[:, 1:][row, column],
            lengths=lengths_of(completion_mask),
        )


def lengths_of(completion_mask: Bool[Tensor, " r t"]) -> Int[Tensor, " r"]:
    """Completion tokens per row, known before anything is scored."""
    return completion_mask[:, 1:].sum(dim=1)


def to_completions(
    layout: Layout,
    values: Mapping[str, Float[Tensor, " k"]],
    *,
    tokens: bool = False,
) -> Completions:
    """Sum flat per-token values by row.

    Args:
        layout: where the tokens are.
        values: ``logps`` and, where they were scored, ``ref_logps`` and the statistics of `TokenLogps`.
        tokens: keep the per-token values too, left-aligned and padded on the right.

    Returns:
        R completions, in row order.
    """
    if tokens:
        return Completions.from_tokens(
            TokenLogps(mask=_token_mask(layout), **{k: pad_tokens(layout, v) for k, v in values.items()})
        )
    ref = values.get("ref_logps")
    return Completions(
        logps=_row_sums(layout, values["logps"]),
        lengths=layout.lengths,
        ref_logps=None if ref is None else _row_sums(layout, ref),
    )


def _row_sums(layout: Layout, values: Float[Tensor, " k"]) -> Float[Tensor, " r"]:
    return values.new_zeros(layout.lengths.shape[0]).index_add(0, layout.row, values)


def _token_mask(layout: Layout) -> Bool[Tensor, " r t"]:
    width = int(layout.lengths.max()) if len(layout.lengths) else 0
    return torch.arange(width, device=layout.lengths.device) < layout.lengths[:, None]


def pad_tokens(layout: Layout, values: Float[Tensor, " k"]) -> Float[Tensor, " r t"]:
    """Flat per-token values as rows, left-aligned and padded on the right with 0."""
    mask = _token_mask(layout)
    # Tokens are in row order and each row is filled from the left, so the mask's True entries are in that order too.
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
