"""Tokens on their way to an objective: padded rows, their layout, and the labels that come with them.

`prefopt.data.collate` makes a `MicroBatch`, `prefopt.scoring` scores its rows, and a container (`prefopt.core.batches`)
takes the result together with the labels. Nothing here is changed in place: every method gives a new object.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefopt.core.batches import Completions, TokenLogps
from prefopt.core.errors import UsageError
from prefopt.core.labels import LABELS, Axis


@dataclass(frozen=True)
class Layout:
    """Where the K completion tokens of R padded rows are, in row order.

    Attributes:
        row: The row of each token.
        predictor: The position that predicts each token, an index into the flattened [R · T] positions. It is the one
            before the token; for the first completion token that is the last prompt position.
        target: The token ids.
        lengths: Tokens per row.
    """

    row: Int[Tensor, " k"]
    predictor: Int[Tensor, " k"]
    target: Int[Tensor, " k"]
    lengths: Int[Tensor, " r"]

    @cached_property
    def mask(self) -> Bool[Tensor, " r t"]:
        """True where left-aligned rows of per-token values have a token."""
        width = int(self.lengths.max()) if len(self.lengths) else 0
        return torch.arange(width, device=self.lengths.device) < self.lengths[:, None]

    def pad(self, values: Float[Tensor, " k"]) -> Float[Tensor, " r t"]:
        """Flat per-token values as rows, left-aligned and padded on the right with 0."""
        # Tokens are in row order and each row is filled from the left, so the mask's True entries are in that order.
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)

    def completions(self, values: Mapping[str, Float[Tensor, " k"]], *, tokens: bool = False) -> Completions:
        """Sum flat per-token values by row.

        Args:
            values: ``logps`` and, where they were scored, ``ref_logps`` and the statistics of `TokenLogps`.
            tokens: Whether to keep the per-token values too, left-aligned and padded on the right.

        Returns:
            R completions, in row order.
        """
        if tokens:
            padded = {name: self.pad(value) for name, value in values.items()}
            return Completions.from_tokens(TokenLogps(mask=self.mask, **padded))
        ref = values.get("ref_logps")
        return Completions(
            logps=self._row_sums(values["logps"]),
            lengths=self.lengths,
            ref_logps=None if ref is None else self._row_sums(ref),
        )

    def _row_sums(self, values: Float[Tensor, " k"]) -> Float[Tensor, " r"]:
        return values.new_zeros(self.lengths.shape[0]).index_add(0, self.row, values)


@dataclass(frozen=True, kw_only=True, eq=False)
class PaddedRows:
    """R sequences of tokens, padded on the right to T positions.

    Attributes:
        input_ids: The tokens.
        attention_mask: 1 on tokens, 0 on padding.
        completion_mask: True where a token of the completion counts.
    """

    input_ids: Int[Tensor, " r t"]
    attention_mask: Int[Tensor, " r t"]
    completion_mask: Bool[Tensor, " r t"]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def device(self) -> torch.device:
        return self.input_ids.device

    @property
    def width(self) -> int:
        """T, the number of columns."""
        return self.input_ids.shape[1]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The arguments of a model's ``forward`` for all rows in one pass."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}

    @cached_property
    def lengths(self) -> Int[Tensor, " r"]:
        """Completion tokens per row, known before anything is scored."""
        # Nothing stands before position 0 that could predict its token, so that token never counts.
        return self.completion_mask[:, 1:].sum(dim=1)

    @cached_property
    def layout(self) -> Layout:
        """Where the completion tokens are. It is computed once for these rows."""
        row, column = self.completion_mask[:, 1:].nonzero(as_tuple=True)
        return Layout(
            row=row,
            predictor=row * self.width + column,
            target=self.input_ids[:, 1:][row, column],
            lengths=self.lengths,
        )

    def select(self, chosen: Bool[Tensor, " r"]) -> Self:
        """Some of these rows, padded to the longest of them."""
        width = int(self.attention_mask[chosen].sum(dim=1).max())
        return self.map(lambda values: values[chosen][:, :width])

    def tokens_of(self, chosen: Bool[Tensor, " r"]) -> Bool[Tensor, " k"]:
        """Which of the completion tokens of all rows stand in some of them."""
        return chosen.repeat_interleave(self.lengths)

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The rows with every tensor changed."""
        return type(self)(
            input_ids=change(self.input_ids),
            attention_mask=change(self.attention_mask),
            completion_mask=change(self.completion_mask),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class MicroBatch:
    """n examples of one kind in R rows with K completion tokens, and what is known of them before they are scored.

    Pairs are 2n rows, all chosen and then all rejected; groups as many rows as they have completions, one group after
    the other; prompts n rows without a completion.

    Attributes:
        rows: Prompts with their completions.
        labels: Values of labels by name. Their axes are declared in `prefopt.core.labels`: a label of examples is [n],
            one of completions [R], and one of tokens [K], flat in row order.
        mismatched: n rows, each a prompt followed by the completion of another prompt, where the objective observes
            them (KTO).
        ref_logps: The reference's log-probs of the completion tokens, once they are known.
        mismatched_ref_logps: The same for the mismatched rows.

    Raises:
        UsageError: A label is not declared, or has another length than its axis.
    """

    rows: PaddedRows
    labels: Mapping[str, Tensor]
    mismatched: PaddedRows | None = None
    ref_logps: Float[Tensor, " k"] | None = None
    mismatched_ref_logps: Float[Tensor, " m"] | None = None

    def __post_init__(self) -> None:
        # The number of tokens is left out: on a GPU, to ask for it waits for the device.
        sizes = {Axis.EXAMPLE: self.num_examples, Axis.COMPLETION: len(self.rows)}
        for name, values in self.labels.items():
            axis = _axis(name)
            if len(values) != sizes.get(axis, len(values)):
                raise UsageError(
                    f"the label {name!r} has {len(values)} values, and the micro-batch {sizes[axis]} {axis.value}s."
                )

    @property
    def num_examples(self) -> int:
        """n: how many pairs, labelled rows, groups, demonstrations or prompts."""
        return len(self.labels["ids"])

    @cached_property
    def padded_labels(self) -> dict[str, Tensor]:
        """The labels as containers hold them: per-token ones as rows, padded like completions."""
        return {
            name: self.rows.layout.pad(values) if _axis(name) is Axis.TOKEN else values
            for name, values in self.labels.items()
        }

    def rows_of(self, start: int, end: int) -> Bool[Tensor, " r"]:
        """Which rows belong to the examples ``start`` to ``end``."""
        group = self.labels.get("group")
        if group is None:
            # All first completions, then all second ones.
            group = torch.arange(len(self.rows), device=self.rows.device) % self.num_examples
        return (group >= start) & (group < end)

    def tokens_of(self, start: int, end: int) -> Bool[Tensor, " k"]:
        """Which completion tokens belong to the examples ``start`` to ``end``."""
        return self.rows.tokens_of(self.rows_of(start, end))

    def part(self, start: int, end: int) -> Self:
        """The examples ``start`` to ``end``, as `collate` would have laid them out by themselves.

        Pairs stay pairs and groups stay groups; what is flat over completion tokens stays with its rows.
        """
        rows, tokens = self.rows_of(start, end), self.tokens_of(start, end)
        picks = {Axis.EXAMPLE: slice(start, end), Axis.COMPLETION: rows, Axis.TOKEN: tokens}
        labels = {name: values[picks[_axis(name)]] for name, values in self.labels.items()}
        if "group" in labels:
            labels["group"] = labels["group"] - start
        some = type(self)(
            rows=self.rows.select(rows),
            labels=labels,
            ref_logps=None if self.ref_logps is None else self.ref_logps[tokens],
        )
        if self.mismatched is None:
            return some
        own = torch.zeros(self.num_examples, dtype=torch.bool, device=rows.device)
        own[start:end] = True
        known = self.mismatched_ref_logps
        return replace(
            some,
            mismatched=self.mismatched.select(own),
            mismatched_ref_logps=None if known is None else known[self.mismatched.tokens_of(own)],
        )

    def with_reference(
        self, ref_logps: Float[Tensor, " k"], mismatched_ref_logps: Float[Tensor, " m"] | None = None
    ) -> Self:
        """The same micro-batch with the reference's log-probs."""
        return replace(self, ref_logps=ref_logps, mismatched_ref_logps=mismatched_ref_logps)

    def with_reference_of(self, parts: Sequence[tuple[int, int, Self]]) -> Self:
        """The same micro-batch with the reference's log-probs of all its parts.

        Args:
            parts: From `part`, each with its ``start`` and ``end``, together all examples, in order.
        """
        values = torch.cat([some.ref_logps for *_, some in parts])
        places = torch.cat([self.tokens_of(start, end).nonzero()[:, 0] for start, end, _ in parts])
        joined = torch.empty_like(values).index_copy(0, places, values)
        if self.mismatched is None:
            return self.with_reference(joined)
        return self.with_reference(joined, torch.cat([some.mismatched_ref_logps for *_, some in parts]))

    def to(self, device: torch.device | str) -> Self:
        """The same micro-batch on a device; itself where it is there already, with what it has computed."""
        # Tensors that need no move are returned as they are; "cuda" and "cuda:0" may name one device.
        if self.rows.input_ids.to(device) is self.rows.input_ids:
            return self
        return self._map(lambda values: values.to(device))

    def pin_memory(self) -> Self:
        """The same micro-batch in pinned memory; torch's ``DataLoader`` calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        known = {"ref_logps": self.ref_logps, "mismatched_ref_logps": self.mismatched_ref_logps}
        return type(self)(
            rows=self.rows.map(change),
            labels={name: change(values) for name, values in self.labels.items()},
            mismatched=None if self.mismatched is None else self.mismatched.map(change),
            **{name: None if values is None else change(values) for name, values in known.items()},
        )


def _axis(name: str) -> Axis:
    if name not in LABELS:
        raise UsageError(f"no label is called {name!r}: declare it in prefopt/core/labels.py.")
    return LABELS[name].axis
