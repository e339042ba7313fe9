"""Examples to tokens, within a length: what is kept, what is cut, and what is dropped for which reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from prefopt.data.encode import Encoded, Encoder
from prefopt.data.examples import DemonstrationExample, Example, PairExample, RankedExample, Text
from prefopt.data.group import Fit, Group, encode_group, fit_group, group_labels
from prefopt.data.messages import as_messages, is_empty, key_of, trains
from prefopt.data.reasons import Cause, Reason, Skipped, SkipRow
from prefopt.data.settings import DataSettings
from prefopt.data.values import read_structure


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
        split: how many conversations were read as one example for each answer.
        added: how many more examples there are for that.
        control: the rows with the text of control tokens in them, which stays text.
    """

    examples: list[TokenizedExample]
    dropped: list[Skipped]
    cut: int
    lengths: list[tuple[int, int]]
    left: list[Skipped]
    split: int = 0
    added: int = 0
    control: list[int] = field(default_factory=list)


def completions_of(example: Example) -> list[Text]:
    """The completions of an example in words; none of a prompt."""
    if isinstance(example, PairExample):
        return [example.chosen, example.rejected]
    if isinstance(example, RankedExample):
        return list(example.completions)
    return [] if example.kind == "prompts" else [example.completion]


def tokenize(examples: Sequence[Example], tokenizer: Any, settings: DataSettings, max_length: int) -> Tokenized:
    """Tokenize examples; one that cannot be used is dropped and counted.

    A conversation whose earlier answers the chat template writes otherwise once later turns follow becomes one example
    for each answer, so that each is learned behind the text that the model sees when it writes it.

    Args:
        examples: all of one kind.
        tokenizer: a `PreTrainedTokenizerBase`.
        settings: ``truncation`` and ``template_args`` are used.
        max_length: tokens of prompt and completion together.
    """
    encoder = Encoder(tokenizer, settings)
    made = Tokenized([], [], 0, [], [])
    limit = partial(fit, limit=max_length, truncation=settings.truncation, bos=tokenizer.bos_token_id)
    cut = split = added = 0
    for example in examples:
        gone: list[Cause] = []
        try:
            pieces = _encode_all(example, encoder, gone)
        except SkipRow as skip:
            made.dropped.append((example.row, skip.cause))
            continue
        split, added = split + (len(pieces) > 1), added + len(pieces) - 1
        before = len(made.examples)
        for piece, prompt, whole in pieces:
            longest = max((len(each.ids) for each in whole.values()), default=0)
            made.lengths.append((len(prompt), len(prompt) + longest))
            try:
                short, kept = _fit(piece, prompt, whole, limit, gone)
            except SkipRow as skip:
                made.dropped.append((piece.row, skip.cause))
                continue
            cut += len(short) < len(prompt) or any(len(kept[k].ids) < len(whole[k].ids) for k in kept)
            made.left.extend((piece.row, cause) for cause in gone)
            made.examples.append(_pack(len(made.examples), short, kept, piece))
        found = encoder.control_text(example.prompt, completions_of(example), example.columns.get("tools"))
        if found and len(made.examples) > before:
            made.control.append(example.row)
    return replace(made, cut=cut, split=split, added=added)


def _encode_all(example: Example, encoder: Encoder, gone: list[Cause]) -> list[tuple[Example, np.ndarray, Group]]:
    """An example with its tokens; of a conversation whose earlier turns the template rewrites, one for each answer."""
    encoder = encoder.with_arguments(row_arguments(example))
    try:
        return [(example, *_encode(example, encoder, gone))]
    except SkipRow as skip:
        answers = _answers(example) if skip.cause.reason is Reason.TEMPLATE_REWRITES else []
        if len(answers) < 2:
            raise
        return [(answer, *_encode(answer, encoder, gone)) for answer in answers]


def row_arguments(example: Example) -> Mapping[str, Any]:
    """The arguments for the chat template that come with a row.

    Raises:
        SkipRow: they are no mapping of names to values.
    """
    given = read_structure(example.columns.get("chat_template_kwargs"), "chat_template_kwargs") or {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise SkipRow(Reason.NOT_MAPPING, column="chat_template_kwargs")
    # A table has null where a row did not have an argument.
    return {name: value for name, value in given.items() if value is not None}


def _answers(example: Example) -> list[Example]:
    """A conversation as one demonstration for each of its answers."""
    if not isinstance(example, DemonstrationExample) or isinstance(example.completion, str):
        return []
    turns, start = example.messages, len(as_messages(example.prompt, "user"))
    return [
        replace(example, prompt=turns[:place], completion=[turns[place]])
        for place in range(start, len(turns))
        if trains(turns[place])
    ]


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
    encoder.check_plain(example.prompt, completions_of(example))
    if example.kind == "prompts":
        return encoder.prompt(example.prompt, tools), {}
    if isinstance(example, RankedExample):
        return encode_group(example, encoder, left)
    if isinstance(example, PairExample):
        texts = completions_of(example)
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
