"""Examples to tokens, within a length: what is kept, what is cut, and what is dropped for which reason."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from prefopt.data.encode import Encoded, Encoder
from prefopt.data.examples import Example, PairExample, RankedExample
from prefopt.data.group import Fit, Group, encode_group, fit_group, group_labels
from prefopt.data.messages import is_empty, key_of
from prefopt.data.reasons import Cause, Reason, Skipped, SkipRow
from prefopt.data.settings import DataSettings


@dataclass(frozen=True, eq=False)
class TokenizedExample:
    """One example as token ids.

    Attributes:
        id: its place in the dataset, the same in every epoch.
        prompt: int32 ids, as generation would see them.
        completions: int32 ids of each completion: (chosen, rejected), those of a group, one, or none for a prompt.
        masks: which ids of each completion count; None where all do.
        labels: those that are known, by the names and axes of `prefopt.core.labels`: one number for an example, a
            tuple with one for each completion, or a float array with one for each token that counts, completion after
            completion.
        source: the example in words.
        mismatched: a completion of another prompt, to be scored after this one, with its mask (KTO).
    """

    id: int
    prompt: np.ndarray
    completions: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...] | None = None
    labels: dict[str, Any] = field(default_factory=dict)
    source: Example | None = None
    mismatched: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def row(self) -> int:
        """The number of its row in the data."""
        return self.id if self.source is None else self.source.row

    def mask(self, number: int) -> np.ndarray:
        """Which ids of completion ``number`` count, as bools."""
        return np.ones(len(self.completions[number]), dtype=bool) if self.masks is None else self.masks[number]


@dataclass(frozen=True)
class Tokenized:
    """What came out of a list of examples.

    Attributes:
        examples: those that are kept.
        dropped: the rows of the others, with the cause.
        cut: how many of the kept ones were cut to the limit.
        lengths: tokens of each prompt and of each whole row (its longest completion), before any cut.
        left: the rows of completions that left their group, which is kept, with the cause.
    """

    examples: list[TokenizedExample]
    dropped: list[Skipped]
    cut: int
    lengths: list[tuple[int, int]]
    left: list[Skipped]


def tokenize(examples: Sequence[Example], tokenizer: Any, settings: DataSettings, max_length: int) -> Tokenized:
    """Tokenize examples; one that cannot be used is dropped and counted.

    Args:
        examples: all of one kind.
        tokenizer: a `PreTrainedTokenizerBase`.
        settings: ``truncation`` and ``template_args`` are used.
        max_length: tokens of prompt and completion together.
    """
    encoder = Encoder(tokenizer, settings)
    result, dropped, cut, lengths, left = [], [], 0, [], []
    limit = partial(fit, limit=max_length, truncation=settings.truncation, bos=tokenizer.bos_token_id)
    for example in examples:
        gone: list[Cause] = []
        try:
            prompt, whole = _encode(example, encoder, gone)
            longest = max((len(each.ids) for each in whole.values()), default=0)
            lengths.append((len(prompt), len(prompt) + longest))
            short, kept = _fit(example, prompt, whole, limit, gone)
        except SkipRow as skip:
            dropped.append((example.row, skip.cause))
            continue
        cut += len(short) < len(prompt) or any(len(kept[k].ids) < len(whole[k].ids) for k in kept)
        left += [(example.row, cause) for cause in gone]
        result.append(_pack(len(result), short, kept, example))
    return Tokenized(result, dropped, cut, lengths, left)


def fit(
    prompt: np.ndarray, completions: Sequence[Encoded], limit: int, truncation: str, bos: int | None = None
) -> tuple[np.ndarray, list[Encoded]]:
    """Cut one prompt and its completions to ``limit`` tokens, the way that ``truncation`` says.

    A prompt that loses its start keeps a leading token ``bos``.

    Raises:
        SkipRow: they do not fit and must not be cut, or nothing that counts would be left.
    """
    longest = max((len(each.ids) for each in completions), default=1)
    if len(prompt) + longest <= limit:
        return prompt, list(completions)
    if truncation == "keep-end":
        if longest >= limit:
            raise SkipRow(Reason.LONG_COMPLETION, limit=limit)
        return _keep_end(prompt, limit - longest, bos), list(completions)
    if len(prompt) >= limit:
        raise SkipRow(Reason.LONG_PROMPT, limit=limit)
    if truncation == "drop":
        raise SkipRow(Reason.LONG_ROW, limit=limit)
    room = limit - len(prompt)
    kept = [Encoded(each.ids[:room], each.mask[:room]) for each in completions]
    if not all(each.mask.any() for each in kept):
        raise SkipRow(Reason.NOTHING_BEFORE_CUT)
    return prompt, kept


def _keep_end(prompt: np.ndarray, room: int, bos: int | None) -> np.ndarray:
    if prompt[0] == bos and room > 1:
        return np.concatenate([prompt[:1], prompt[len(prompt) - room + 1 :]])
    return prompt[len(prompt) - room :]


def _encode(example: Example, encoder: Encoder, left: list[Cause]) -> tuple[np.ndarray, Group]:
    tools = example.columns.get("tools")
    if example.kind == "prompts":
        return encoder.prompt(example.prompt, tools), {}
    if isinstance(example, RankedExample):
        return encode_group(example, encoder, left)
    if isinstance(example, PairExample):
        texts = [example.chosen, example.rejected]
        if any(map(is_empty, texts)):
            raise SkipRow(Reason.EMPTY_COMPLETION)
        if key_of(texts[0]) == key_of(texts[1]):
            raise SkipRow(Reason.EQUAL_SIDES)
        (prompt, chosen), (_, rejected) = (encoder.completion(example.prompt, text, tools) for text in texts)
        _refuse_equal([chosen, rejected], Reason.EQUAL_SIDES)
        return prompt, {0: chosen, 1: rejected}
    if is_empty(example.completion):
        raise SkipRow(Reason.EMPTY_COMPLETION)
    encode = encoder.demonstration if example.kind == "demonstrations" else encoder.completion
    prompt, completion = encode(example.prompt, example.completion, tools)
    return prompt, {0: completion}


def _fit(example: Example, prompt: np.ndarray, group: Group, limit: Fit, left: list[Cause]) -> tuple[np.ndarray, Group]:
    if isinstance(example, RankedExample):
        return fit_group(example, prompt, group, limit, left)
    short, kept = limit(prompt, list(group.values()))
    _refuse_equal(kept, Reason.EQUAL_AFTER_CUT)
    return short, dict(zip(group, kept, strict=True))


def _refuse_equal(completions: Sequence[Encoded], reason: Reason) -> None:
    if len(completions) == 2 and np.array_equal(completions[0].ids, completions[1].ids):
        raise SkipRow(reason)


def _pack(number: int, prompt: np.ndarray, group: Group, example: Example) -> TokenizedExample:
    completions = group.values()
    whole = all(each.mask.all() for each in completions)
    return TokenizedExample(
        id=number,
        prompt=prompt,
        completions=tuple(each.ids for each in completions),
        masks=None if whole else tuple(each.mask for each in completions),
        labels={**example.known, **(group_labels(example, list(group)) if isinstance(example, RankedExample) else {})},
        source=example,
    )
