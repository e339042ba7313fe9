"""A padded micro-batch in few forward passes: its rows sorted by length, each pass padded to its own longest row.

It is what is left to do about padding where rows cannot become one flat sequence (see `sharing`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from prefopt.core.micro_batch import PaddedRows

CALL = {"cpu": 128}
"""What a forward and backward pass costs besides its positions, in positions, by device. On a CPU it was 20 to 110 for
every kind of model, attention or not, with 3 million weights; larger ones take longer for each position ..."""
ELSEWHERE = 1024
"""... and by arithmetic elsewhere: kernels that are started for nothing, weights in 4 bit that are unpacked again."""


class Part(NamedTuple):
    """Some rows of a micro-batch, padded to the longest of them.

    Attributes:
        inputs: ``input_ids`` and ``attention_mask``, [r, t].
        rows: which rows of the micro-batch they are.
    """

    inputs: Mapping[str, Tensor]
    rows: Int[Tensor, " r"]


class Pass(NamedTuple):
    """A forward pass of which completion tokens are read.

    Attributes:
        inputs: arguments of the model's ``forward``.
        index: where the tokens are predicted, among its flattened positions.
        tokens: which completion tokens of the layout they are.
    """

    inputs: Mapping[str, Any]
    index: Int[Tensor, " k"]
    tokens: Int[Tensor, " k"]


def call_of(model: nn.Module) -> int:
    """What a pass of a model costs besides its positions, in positions."""
    return CALL.get(next(model.parameters()).device.type, ELSEWHERE)


def cheapest(lengths: Sequence[int], call: int) -> list[list[int]]:
    """Rows by forward pass, that of the longest first, where all passes together cost least; in order within a pass.

    Args:
        lengths: tokens of every row.
        call: what a pass costs besides its positions, which are its rows times the longest of them.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    longest = np.asarray(lengths)[order]
    # The least that the first rows cost, and where the last of their passes begins.
    least, begins = np.zeros(len(order) + 1, dtype=np.int64), np.zeros(len(order) + 1, dtype=np.int64)
    for end in range(1, len(order) + 1):
        costs = least[:end] + longest[:end] * (end - np.arange(end)) + call
        begins[end] = costs.argmin()
        least[end] = costs[begins[end]]
    passes: list[list[int]] = []
    end = len(order)
    while end:
        passes.append(sorted(order[begins[end] : end].tolist()))
        end = int(begins[end])
    return passes[::-1]


def parts_of(padded: PaddedRows, rows: Int[Tensor, " r"], call: int) -> list[Part]:
    """Some rows, by number, in the cheapest parts; each row is in one."""
    lengths = padded.attention_mask[rows].sum(dim=1).tolist()
    made = []
    for chosen in cheapest(lengths, call):
        own, width = rows[chosen], max(lengths[i] for i in chosen)
        made.append(Part({key: values[own, :width] for key, values in padded.inputs.items()}, own))
    return made


def pass_of(part: Part, padded: PaddedRows) -> Pass:
    """The forward pass of a part of these rows."""
    layout = padded.layout
    place = torch.full_like(layout.lengths, -1)
    place[part.rows] = torch.arange(len(part.rows), device=place.device)
    tokens = (place[layout.row] >= 0).nonzero().squeeze(1)
    row = layout.row[tokens]
    column = layout.predictor[tokens] - row * padded.width
    return Pass(part.inputs, place[row] * part.inputs["input_ids"].shape[1] + column, tokens)


def in_order(values: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
    """Values of several passes, one after the other, in the order of the places that each pass holds; those of a single
    pass are in order."""
    return values[0] if len(values) == 1 else torch.cat(list(values))[torch.cat(list(places)).argsort()]
