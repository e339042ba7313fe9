"""Examples to tokens, within a length: what is kept, what is cut, and what is dropped for which reason."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from prefopt.data.encode import Encoded, Encoder
from prefopt.data.examples import Example, PairExample, RankedExample
from prefopt.data.group import Fit, Group, encode_group, fit_group, group_labels
from prefopt.data.messages import Drop, is_empty, key_of
from prefopt.data.settings import DataSettings


@dataclass(frozen=True, eq=False)
class TokenizedExample:
    """One example as token ids.

    Attributes:
        id: its place in the dataset, the same in every epoch.
        prompt: int32 ids, as generation would see them.
        completions: int32 ids of each completion: (chosen, rejected), those of a group, one, or none for a prompt.
        masks: which ids of each completion count; None where all do.
        labels: ``desirable`` (bool), ``preference``, ``chosen_score``, ``rejected_score``, ``rated_margin``, where
            known; of a group ``ranks`` (one whole number for each completion, 1 is best) and, where known, ``scores``
            (floats); of a sampled completion arrays with one float32 for each of its tokens (``old_logps``,
            ``advantages`` ...); where the reference is scored already ``ref_logps``, one for each token that counts,
            completion after completion, and ``mismatched_ref_logps``.
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

    def mask(self, number: int) -> np.ndarray:
        """Which ids of completion ``number`` count, as bools."""
        return np.ones(len(self.completions[number]), dtype=bool) if self.masks is None else self.masks[number]


@dataclass(frozen=True)
class Tokenised:
    """What came out of a list of examples.

    Attributes:
        examples: those that are kept.
        dropped: reason → number.
        cut: how many of the kept ones were cut to the limit.
        lengths: tokens of each prompt and of each whole row (its longest completion), before any cut.
        left: reason → number of completions that left their group, which is kept.
    """

    examples: list[TokenizedExample]
    dropped: Counter
    cut: int
    lengths: list[tuple[int, int]]
    left: Counter


def tokenise(examples: Sequence[Example], tokenizer: Any, settings: DataSettings, max_length: int) -> Tokenised:
    """Tokenise examples; one that cannot be used is dropped and counted.

    Args:
        examples: all of one kind.
        tokenizer: a `PreTrainedTokenizerBase`.
        settings: ``truncation`` and ``template_args`` are used.
        max_length: tokens of prompt and completion together.
    """
    encoder = Encoder(tokenizer, settings)
    result, dropped, cut, lengths, left = [], Counter(), 0, [], Counter()
    limit = partial(fit, limit=max_length, truncation=settings.truncation, bos=tokenizer.bos_token_id)
    for example in examples:
        gone: Counter = Counter()
        try:
            prompt, whole = _encode(example, encoder, gone)
            longest = max((len(each.ids) for each in whole.values()), default=0)
            lengths.append((len(prompt), len(prompt) + longest))
            short, kept = _fit(example, prompt, whole, limit, gone)
        except Drop as drop:
            dropped[drop.reason] += 1
            continue
        cut += len(short) < len(prompt) or any(len(kept[k].ids) < len(whole[k].ids) for k in kept)
        left += gone
        result.append(_pack(len(result), short, kept, example))
    return Tokenised(result, dropped, cut, lengths, left)


def fit(
    prompt: np.ndarray, completions: Sequence[Encoded], limit: int, truncation: str, bos: int | None = None
) -> tuple[np.ndarray, list[Encoded]]:
    """Cut one prompt and its completions to ``limit`` tokens, the way that ``truncation`` says.

    A prompt that loses its start keeps a leading token ``bos``.

    Raises:
        Drop: they do not fit and must not be cut, or nothing that counts would be left.
    """
    longest = max((len(each.ids) for each in completions), default=1)
    if len(prompt) + longest <= limit:
        return prompt, list(completions)
    if truncation == "keep-end":
        if longest >= limit:
            raise Drop(f"with a completion of {limit} tokens or more")
        return _keep_end(prompt, limit - longest, bos), list(completions)
    if len(prompt) >= limit:
        raise Drop(f"with a prompt of {limit} tokens or more")
    if truncation == "drop":
        raise Drop(f"longer than {limit} tokens")
    room = limit - len(prompt)
    kept = [Encoded(each.ids[:room], each.mask[:room]) for each in completions]
    if not all(each.mask.any() for each in kept):
        raise Drop("with nothing that counts before the cut")
    return prompt, kept


def _keep_end(prompt: np.ndarray, room: int, bos: int | None) -> np.ndarray:
    if prompt[0] == bos and room > 1:
        return np.concatenate([prompt[:1], prompt[len(prompt) - room + 1 :]])
    return prompt[len(prompt) - room :]


def _encode(example: Example, encoder: Encoder, left: Counter) -> tuple[np.ndarray, Group]:
    tools = example.columns.get("tools")
    if example.kind == "prompts":
        return encoder.prompt(example.prompt, tools), {}
    if isinstance(example, RankedExample):
        return encode_group(example, encoder, left)
    if isinstance(example, PairExample):
        texts = [example.chosen, example.rejected]
        if any(map(is_empty, texts)):
            raise Drop("with an empty completion")
        if key_of(texts[0]) == key_of(texts[1]):
            raise Drop("with chosen equal to rejected")
        (prompt, chosen), (_, rejected) = (encoder.completion(example.prompt, text, tools) for text in texts)
        _refuse_equal([chosen, rejected], "with chosen equal to rejected")
        return prompt, {0: chosen, 1: rejected}
    if is_empty(example.completion):
        raise Drop("with an empty completion")
    encode = encoder.demonstration if example.kind == "demonstrations" else encoder.completion
    prompt, completion = encode(example.prompt, example.completion, tools)
    return prompt, {0: completion}


def _fit(example: Example, prompt: np.ndarray, group: Group, limit: Fit, left: Counter) -> tuple[np.ndarray, Group]:
    if isinstance(example, RankedExample):
        return fit_group(example, prompt, group, limit, left)
    short, kept = limit(prompt, list(group.values()))
    _refuse_equal(kept, "identical after the cut")
    return short, dict(zip(group, kept, strict=True))


def _refuse_equal(completions: Sequence[Encoded], reason: str) -> None:
    if len(completions) == 2 and np.array_equal(completions[0].ids, completions[1].ids):
        raise Drop(reason)


def _pack(number: int, prompt: np.ndarray, group: Group, example: Example) -> TokenizedExample:
    completions = group.values()
    whole = all(each.mask.all() for each in completions)
    return TokenizedExample(
        id=number,
        prompt=prompt,
        completions=tuple(each.ids for each in completions),
        masks=None if whole else tuple(each.mask for each in completions),
        labels=group_labels(example, list(group)) if isinstance(example, RankedExample) else _labels(example),
        source=example,
    )


def _labels(example: Example) -> dict[str, float | bool]:
    names = ("desirable", "preference", "chosen_score", "rejected_score", "rated_margin")
    values = {name: getattr(example, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}
