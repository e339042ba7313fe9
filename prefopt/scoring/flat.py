"""Rows that begin with the same prompt, one after the other without padding, and the prompt only once.

``[prompt | completion 1 | … | completion G]`` for every prompt of a micro-batch. A completion's first token is
predicted at the last prompt position. What comes after a completion's last predicting position is left out, for nothing
reads it.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefopt.core.micro_batch import PaddedRows

WASTE = 0.25
"""Share of a bucket's attention scores that padding may take up, beyond a floor below which a call of its own costs
more than the padding does."""
FLOOR = 2**16


class Span(NamedTuple):
    """Queries of one kind: a prompt with its first completion, or a further completion after its prompt.

    Attributes:
        queries: first position and number of the queries.
        prompt: first position and number of the keys before them; (0, 0) where the queries bring their own prompt.
    """

    queries: tuple[int, int]
    prompt: tuple[int, int]

    @property
    def keys(self) -> int:
        return self.prompt[1] + self.queries[1]


@dataclass(frozen=True)
class Bucket:
    """Spans of similar size, whose attention is one call.

    Attributes:
        queries: positions in the flat sequence, padded on the right with any position.
        keys: likewise; a query sees those up to its own place among them.
        before: how many keys stand before the first query of a span.
        plain: no keys do, in any of the spans: then causality alone hides the padding, and no mask is needed.
    """

    queries: Int[Tensor, " n q"]
    keys: Int[Tensor, " n k"]
    before: Int[Tensor, " n"]
    plain: bool

    def is_causal(self, window: int | None) -> bool:
        """Whether every query sees all keys up to its own place, and that place is its number."""
        return self.plain and (window is None or self.keys.shape[1] <= window)

    def visible(self, window: int | None) -> Bool[Tensor, " n 1 q k"]:
        """Which keys a query sees: those up to its own place, of them the last ``window`` ones."""
        place = self.before[:, None] + torch.arange(self.queries.shape[1], device=self.queries.device)
        # Queries that are padding may see what they like, but not nothing: a softmax over nothing is no number.
        place = place.clamp(max=self.keys.shape[1] - 1)[:, :, None]
        key = torch.arange(self.keys.shape[1], device=self.keys.device)
        seen = key <= place
        return (seen if window is None else seen & (key > place - window))[:, None]


class Ragged(NamedTuple):
    """Spans one after the other; the queries stand in the flat sequence in this order already.

    Attributes:
        keys: positions of the keys of all spans, prompts again for every span that sees them.
        query_ends, key_ends: where spans end, from 0.
        longest_query, longest_key: tokens of the longest ones.
    """

    keys: Int[Tensor, " k"]
    query_ends: Int[Tensor, " n1"]
    key_ends: Int[Tensor, " n1"]
    longest_query: int
    longest_key: int


@dataclass(frozen=True)
class Flat:
    """The flat sequence of a micro-batch.

    Attributes:
        input_ids: the tokens.
        position_ids: where each stands in its own row.
        predictor: where each of the K completion tokens is predicted, in the order of the layout.
        spans: all queries, in the order in which they stand in the sequence.
        buckets: the same for attention by few calls.
        back: of every position, its place among the queries of all buckets.
        masks: additive attention masks that were made for it, which all layers share.
    """

    input_ids: Int[Tensor, " 1 s"]
    position_ids: Int[Tensor, " 1 s"]
    predictor: Int[Tensor, " k"]
    spans: list[Span]
    buckets: list[Bucket]
    back: Int[Tensor, " s"]
    masks: dict[tuple, Tensor] = field(default_factory=dict)

    @cached_property
    def ragged(self) -> "Ragged":
        """The spans for a kernel that takes sequences of different lengths."""
        device = self.input_ids.device
        keys = [np.arange(start, start + count) for span in self.spans for start, count in (span.prompt, span.queries)]

        def ends(lengths: list[int]) -> Int[Tensor, " n1"]:
            return torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)).to(device)

        queries, seen = [span.queries[1] for span in self.spans], [span.keys for span in self.spans]
        index = torch.from_numpy(np.concatenate(keys)).to(device)
        return Ragged(index, ends(queries), ends(seen), max(queries), max(seen))

    def mask(self, number: int, window: int | None, dtype: torch.dtype) -> Float[Tensor, " n 1 q k"]:
        """The additive mask of a bucket: 0 where a query sees a key, −∞ where not."""
        key = number, window, dtype
        if key not in self.masks:
            seen = self.buckets[number].visible(window)
            self.masks[key] = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
        return self.masks[key]

    @classmethod
    def of(cls, padded: PaddedRows) -> Self:
        """Lay out padded rows one after the other."""
        device, layout = padded.device, padded.layout
        ids, row, column = (values.cpu().numpy() for values in (padded.input_ids, layout.row, layout.predictor))
        column = column - row * padded.width
        # Rows without a token that counts have nothing to predict and are left out.
        rows, first = np.unique(row, return_index=True)
        last = np.append(first[1:], len(row)) - 1
        prompts, ends = column[first] + 1, column[last] + 1
        groups: dict[bytes, list[int]] = {}
        for i, r in enumerate(rows):
            groups.setdefault(ids[r, : prompts[i]].tobytes(), []).append(i)
        pieces, positions, spans = [], [], []
        shift, prompt_start = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
        place = 0
        for members in groups.values():
            prompt, start = int(prompts[members[0]]), place
            for i in members:
                own = np.arange(0 if i == members[0] else prompt, ends[i])
                pieces.append(ids[rows[i], own])
                positions.append(own)
                prompt_start[i], shift[i] = start, place - own[0] if len(own) else 0
                if i == members[0]:
                    spans.append(Span((place, len(own)), (0, 0)))
                elif len(own):
                    spans.append(Span((place, len(own)), (start, prompt)))
                place += len(own)
        number = np.searchsorted(rows, row)
        at_prompt = column < prompts[number]
        predictor = column + np.where(at_prompt, prompt_start[number], shift[number])
        buckets, back = buckets_of(spans, place)

        def on_device(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device)

        return cls(
            input_ids=on_device(np.concatenate(pieces).astype(np.int64))[None],
            position_ids=on_device(np.concatenate(positions).astype(np.int64))[None],
            predictor=on_device(predictor.astype(np.int64)),
            spans=spans,
            buckets=[_moved(bucket, device) for bucket in buckets],
            back=on_device(back),
        )


def buckets_of(spans: list[Span], size: int) -> tuple[list[Bucket], np.ndarray]:
    """Spans in buckets of similar size, and where the buckets have put every position."""
    ordered = sorted(spans, key=lambda span: (span.prompt[1] > 0, span.keys, span.queries[1]))
    chosen: list[list[Span]] = []
    for span in ordered:
        if chosen and _belongs(chosen[-1], span):
            chosen[-1].append(span)
        else:
            chosen.append([span])
    back, place, buckets = np.zeros(size, dtype=np.int64), 0, []
    for members in chosen:
        longest = max(span.queries[1] for span in members)
        queries = np.zeros((len(members), longest), dtype=np.int64)
        keys = np.zeros((len(members), max(span.keys for span in members)), dtype=np.int64)
        for n, span in enumerate(members):
            (start, length), (prompt_start, prompt) = span
            queries[n, :length] = np.arange(start, start + length)
            keys[n, :prompt] = np.arange(prompt_start, prompt_start + prompt)
            keys[n, prompt : prompt + length] = queries[n, :length]
            back[start : start + length] = place + n * longest + np.arange(length)
        place += queries.size
        before = np.array([span.prompt[1] for span in members])
        tensors = (torch.from_numpy(values) for values in (queries, keys, before))
        buckets.append(Bucket(*tensors, plain=not before.any()))
    return buckets, back


def _belongs(bucket: list[Span], span: Span) -> bool:
    """Whether a bucket may take this span in without too much padding."""
    members = [*bucket, span]
    if (bucket[0].prompt[1] > 0) != (span.prompt[1] > 0):
        return False
    needed = sum(one.queries[1] * one.keys for one in members)
    taken = len(members) * max(one.queries[1] for one in members) * max(one.keys for one in members)
    return taken - needed <= max(WASTE * needed, FLOOR)


def _moved(bucket: Bucket, device: torch.device) -> Bucket:
    tensors = (bucket.queries, bucket.keys, bucket.before)
    return Bucket(*(values.to(device) for values in tensors), plain=bucket.plain)
