"""Built-in rewards that need no model: penalties on length, repetition and missing ends, and checks against a pattern.

Penalties are never positive, so they are added with a positive weight: ``[reward, (LengthPenalty(limit=64), 0.5)]``.
Each is a frozen dataclass; as text it is ``"length_penalty(limit=64)"``. Lengths are in tokens of the policy's
tokenizer, the end token included.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from prefopt.core.errors import UsageError, did_you_mean
from prefopt.core.settings import Settings, parameter


@dataclass(frozen=True, kw_only=True)
class BuiltIn(Settings, ABC):
    """A reward with a name and checked parameters. ``__call__`` is a `RewardFunction`."""

    @abstractmethod
    def __call__(self, prompts: Sequence[Any], completions: Sequence[str], **columns: list[Any]) -> list[float]:
        """One number per completion; an implementation names the columns that it reads."""


@dataclass(frozen=True, kw_only=True)
class LengthPenalty(BuiltIn):
    """−per_token · max(0, |y| − limit): every token over a limit costs the same."""

    name: ClassVar[str] = "length_penalty"
    limit: int = parameter(0, "tokens that cost nothing", at_least=0)
    per_token: float = parameter(0.001, "reward lost for each token over the limit", at_least=0)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str], lengths: list[int]) -> list[float]:
        return [self.per_token * min(0, self.limit - length) for length in lengths]


@dataclass(frozen=True, kw_only=True)
class MinLengthPenalty(BuiltIn):
    """−per_token · max(0, limit − |y|): every token that is missing up to a limit costs the same."""

    name: ClassVar[str] = "min_length_penalty"
    limit: int = parameter(16, "tokens from which on nothing is lost", at_least=1)
    per_token: float = parameter(0.01, "reward lost for each token that is missing", at_least=0)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str], lengths: list[int]) -> list[float]:
        return [self.per_token * min(0, length - self.limit) for length in lengths]


@dataclass(frozen=True, kw_only=True)
class SoftOverlongPunishment(BuiltIn):
    """DAPO's soft overlong punishment (Yu et al. 2025, arXiv 2503.14476, eq. 13).

    0 up to L_max − L_cache tokens, then falling linearly, ((L_max − L_cache) − |y|) / L_cache, to −1 at L_max, which
    is the rollout's ``max_new_tokens``. The paper's L_max is 20480 with L_cache = 4096.
    """

    name: ClassVar[str] = "soft_overlong_punishment"
    cache: int = parameter(0, "tokens before the limit on which it falls; 0 takes a fifth of the limit", at_least=0)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[str], lengths: list[int], max_new_tokens: list[int]
    ) -> list[float]:
        longest = max(max_new_tokens, default=0)
        if self.cache > longest > 0:
            raise UsageError(f"{self.name}: cache={self.cache} is more than max_new_tokens={longest}; lower it.")
        return [self._one(length, limit) for length, limit in zip(lengths, max_new_tokens, strict=True)]

    def _one(self, length: int, limit: int) -> float:
        # A long prompt may leave less room than the cache.
        cache = min(self.cache, limit) or max(1, round(limit / 5))
        return max(-1.0, min(0, limit - cache - length) / cache)


@dataclass(frozen=True, kw_only=True)
class RepetitionPenalty(BuiltIn):
    """−(1 − distinct / all) over the n-grams of words: 0 without repetition, towards −1 where all are the same.

    Words are what white space separates, in lower case; a completion of fewer than n words gets 0. This is the penalty
    of Yeo et al. 2025 (arXiv 2502.03373, appendix C.2) as open-r1 computes it, with a maximum of −1.
    """

    name: ClassVar[str] = "repetition_penalty"
    n: int = parameter(3, "words per n-gram", at_least=1)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        return [self._one(text.lower().split()) for text in completions]

    def _one(self, words: list[str]) -> float:
        grams = [tuple(words[i : i + self.n]) for i in range(len(words) - self.n + 1)]
        return len(set(grams)) / len(grams) - 1.0 if grams else 0.0


@dataclass(frozen=True, kw_only=True)
class MissingEosPenalty(BuiltIn):
    """−1 for a completion that was cut at the token limit, 0 for one that ended by itself."""

    name: ClassVar[str] = "missing_eos_penalty"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str], ended: list[bool]) -> list[float]:
        return [0.0 if end else -1.0 for end in ended]


@dataclass(frozen=True, kw_only=True)
class EmptyPenalty(BuiltIn):
    """−1 for a completion without any text but white space, 0 for every other."""

    name: ClassVar[str] = "empty_penalty"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        return [0.0 if text.strip() else -1.0 for text in completions]


@dataclass(frozen=True, kw_only=True)
class PatternReward(BuiltIn):
    """1 where a regular expression (Python's, ``.`` matching line ends too) occurs in the completion, else 0.

    Anchor it to ask for the whole text: ``pattern_reward(pattern='^<think>.*</think>')``.
    """

    name: ClassVar[str] = "pattern_reward"
    pattern: str = parameter("", "the regular expression")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.pattern, str) or not self.pattern:
            raise UsageError(f"{self.name} needs a pattern: write {self.name}(pattern='...').")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UsageError(f"{self.name}: pattern={self.pattern!r} is no regular expression: {error}.") from None

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        return [float(bool(re.search(self.pattern, text, re.DOTALL))) for text in completions]


@dataclass(frozen=True, kw_only=True)
class ExactMatch(BuiltIn):
    """1 where the completion equals a column of the data, white space at both ends aside, else 0; 0 for a null."""

    name: ClassVar[str] = "exact_match"
    column: str = parameter("answer", "the column with the right answers")

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str], **columns: list[Any]) -> list[float]:
        if self.column not in columns:
            near = did_you_mean(str(self.column), columns)
            has = ", ".join(columns) or "none"
            raise UsageError(f"{self.name}: there is no column {self.column!r}.{near} The columns are {has}.")
        pairs = zip(completions, columns[self.column], strict=True)
        return [float(answer is not None and text.strip() == str(answer).strip()) for text, answer in pairs]


BUILT_IN: dict[str, type[BuiltIn]] = {
    cls.name: cls
    for cls in (
        LengthPenalty,
        MinLengthPenalty,
        SoftOverlongPunishment,
        RepetitionPenalty,
        MissingEosPenalty,
        EmptyPenalty,
        PatternReward,
        ExactMatch,
    )
}
"""The built-in rewards by name."""


def build_reward(name: str, parameters: Mapping[str, Any]) -> BuiltIn:
    """The built-in reward of that name.

    Raises:
        UsageError: no such name or parameter (with the nearest one), or a value out of bounds.
    """
    if name not in BUILT_IN:
        near = did_you_mean(name, BUILT_IN)
        raise UsageError(f"there is no built-in reward {name!r}.{near} There are {', '.join(BUILT_IN)}.")
    return BUILT_IN[name].of(parameters)
