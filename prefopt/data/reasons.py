"""Why rows are left out: every reason once, with its words and its remedy."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, unique
from typing import Any

CORRECT = "Correct these rows, or, if they were misread, name their layout in data.format"
_CUT_COMPLETIONS = "Raise data.max_length, or cut completions with data.truncation='keep-start'"
_PRERENDERED = "Set data.prerendered=true if these texts hold the chat template's tokens already"
_SPELLED = "Save the data as JSONL or Parquet, which keep lists; a data frame writes them into CSV as it prints them"
_CUT_PROMPTS = "Raise data.max_length, or cut prompts with data.truncation='keep-end'"


@dataclass(frozen=True)
class _Words:
    """What is said of a reason.

    Attributes:
        text: Completes the phrase "3 rows …", with names of details in braces.
        remedy: What the user can do about it.
        harmless: Whether such a row carries no information, so that nothing is lost with it.
        length: Whether a longer limit would keep the row.
    """

    text: str
    remedy: str = CORRECT
    harmless: bool = False
    length: bool = False


@unique
class Reason(Enum):
    """Why a row is skipped, or a completion leaves its group."""

    # Columns
    MISSING = _Words("without {column!r}")
    EMPTY_COLUMN = _Words("with an empty {column!r}")
    NOT_TEXT = _Words("whose {column!r} is not text")
    NOT_TEXT_OR_MESSAGES = _Words("whose {column!r} is neither text nor messages")
    NOT_MESSAGES = _Words("whose {column!r} is not a list of messages")
    NOT_STRINGS = _Words("whose {column!r} is not a JSON list of strings")
    NOT_JSON = _Words("whose {column!r} is text that is not JSON", _SPELLED)
    NOT_MAPPING = _Words("whose {column!r} is no mapping of names to values")
    CUT_CHARACTER = _Words("with half of a character (a lone surrogate, such as an emoji that was cut) in {column!r}")
    OUT_OF_BOUNDS = _Words("whose {column!r} is not between {low:g} and {high:g}")
    NO_LABEL = _Words("without a label that is true or false")
    NO_RATING = _Words("without a rating that is a number")
    SCORES_DIFFER_IN_NUMBER = _Words("with another number of scores than completions")
    ANSWERS_DIFFER_IN_NUMBER = _Words("with another number of answers than prompts")
    MALFORMED = _Words("malformed (first row {row}: {error})")

    # Turns
    UNKNOWN_ROLE = _Words("with the unknown role {role}")
    NOT_CALLS = _Words("whose tool calls are not a list of calls")
    NOT_ARGUMENTS = _Words("with a tool call whose arguments are not a JSON object")
    CONTENT_NOT_TEXT = _Words("with content that is not text")
    NO_PROMPT = _Words("without a prompt")
    NO_MARKERS = _Words("without a prompt (no 'prompt' column, and no Human/Assistant markers)")
    NO_SHARED_PROMPT = _Words("whose chosen and rejected share no prompt")
    OTHER_PROMPT = _Words("whose completion begins with turns that are not its prompt")
    NO_ANSWER = _Words("without an assistant turn")
    NO_LAST_ANSWER = _Words("that do not end with an assistant turn")

    # Judgements
    TIE = _Words("ties", harmless=True)
    FEW_RATED = _Words("with fewer than two rated answers")
    FEW_DIFFERENT = _Words("with fewer than two different completions")
    SINGLE = _Words("with a single completion, which has nothing to be compared with")
    LACKS_LABELS = _Words("without {columns}")
    ONLY_COMPLETION = _Words("whose only completion is {why}")
    UNJUDGED = _Words("without a judgement")
    EMPTY = _Words("empty")
    REPEATED = _Words("equal to another one")
    REPEATED_AFTER_CUT = _Words("identical to another one after the cut")

    # The chat template
    TEMPLATE_REFUSES = _Words("which the chat template refuses ({error})")
    TEMPLATE_REWRITES = _Words(
        "whose earlier turns the chat template rewrites",
        "Keep only the last answer of these rows as the completion, with the turns before it in the prompt, or use a "
        "chat template that writes every turn as it was generated",
    )
    CALL_AT_END = _Words("whose prompt ends in a tool call without a result")
    TEMPLATE_BREAKS_PROMPT = _Words("whose answer the chat template does not write after its own generation prompt")
    TEMPLATE_MARKS_NOTHING = _Words("in which the chat template marks nothing as generated")
    TOOLS_WITHOUT_TEMPLATE = _Words("with tools, which only a chat template can write")
    CALLS_WITHOUT_TEMPLATE = _Words("with tool calls, which only a chat template can write")

    # Control tokens
    PRERENDERED = _Words("rendered beforehand (control tokens such as {token!r} in plain text)", _PRERENDERED)
    CONTROL_TEXT = _Words("with the text {token!r}, which the tokenizer can only write as its control token")

    # Tokens
    EMPTY_PROMPT = _Words("with an empty prompt")
    EMPTY_COMPLETION = _Words("with an empty completion")
    EQUAL_SIDES = _Words("with chosen equal to rejected")
    EQUAL_AFTER_CUT = _Words("identical after the cut")
    LONG_ROW = _Words("longer than {limit} tokens", _CUT_COMPLETIONS, length=True)
    LONG_PROMPT = _Words("with a prompt of {limit} tokens or more", _CUT_PROMPTS, length=True)
    LONG_COMPLETION = _Words("with a completion of {limit} tokens or more", _CUT_COMPLETIONS, length=True)
    NOTHING_BEFORE_CUT = _Words("with nothing that counts before the cut")

    @property
    def text(self) -> str:
        """The words, with names of details in braces."""
        return self.value.text

    @property
    def remedy(self) -> str:
        """What the user can do about it."""
        return self.value.remedy

    @property
    def harmless(self) -> bool:
        """Whether nothing is lost with such a row."""
        return self.value.harmless

    @property
    def length(self) -> bool:
        """Whether a longer limit would keep the row."""
        return self.value.length


@dataclass(frozen=True)
class Cause:
    """A reason with its details, such as the limit. As text it completes the phrase "3 rows …"."""

    reason: Reason
    details: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return self.reason.text.format(**dict(self.details))

    @classmethod
    def of(cls, reason: Reason, **details: str | int | float) -> "Cause":
        """A reason with the details that its text names."""
        return cls(reason, tuple(details.items()))


class SkipRow(Exception):
    """Raised where a row cannot be used, or a completion of a group.

    Args:
        reason: Why; or the cause, with its details.
        details: What the reason's text names.
    """

    def __init__(self, reason: Reason | Cause, **details: str | int | float) -> None:
        self.cause = reason if isinstance(reason, Cause) else Cause.of(reason, **details)
        super().__init__(str(self.cause))


Skipped = tuple[int, Cause]
"""The number of a row in the data, and why it is left out."""


def tally(skipped: Iterable[Skipped]) -> list[tuple[Cause, int]]:
    """How many rows each cause has, the most frequent one first; equals in order of appearance."""
    return Counter(cause for _, cause in skipped).most_common()
