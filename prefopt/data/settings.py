"""What a user can say about data, validated when it is said."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from prefopt.core.errors import did_you_mean
from prefopt.core.settings import Settings, parameter
from prefopt.data.known import FORMATS

TRUNCATION = ("drop", "keep-start", "keep-end")
PAIRS = ("all", "best-worst")


def _format(value: Any) -> str:
    if value is None or value in FORMATS:
        return ""
    return f"is no known format.{did_you_mean(str(value), FORMATS)} The formats are {', '.join(FORMATS)}."


def _split(value: Any) -> str:
    return "" if isinstance(value, str) and value else "must be the name of a split."


def _eval_split(value: Any) -> str:
    return "" if value is None else _split(value)


def _columns(value: Any) -> str:
    fine = isinstance(value, Mapping) and all(isinstance(name, str) for pair in value.items() for name in pair)
    return "" if fine else "must map names of columns in the data to names that a format knows."


def _arguments(value: Any) -> str:
    fine = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
    return "" if fine else "must map names of template arguments to values."


@dataclass(frozen=True)
class DataSettings(Settings):
    """How rows become tokens.

    Raises:
        UsageError: A value that is not allowed.
    """

    name: ClassVar[str] = "data"
    max_length: int | None = parameter(
        None, "tokens of prompt and completion together; by default the model's context, at most 2048", at_least=2
    )
    truncation: str = parameter(
        "drop",
        "treatment of longer rows: drop leaves them out; keep-start cuts the end of the completion (a prompt that "
        "fills the limit is dropped); keep-end cuts the start of the prompt (a completion that fills the limit is "
        "dropped). The audit counts dropped rows",
        choices=TRUNCATION,
    )
    split: str = parameter("train", "split to read, where the source has several", check=_split)
    eval_split: str | None = parameter(
        None,
        "split of the held-out data, where that source has several; by default the counterpart of split, such as "
        "validation or test",
        check=_eval_split,
    )
    format: str | None = parameter(
        None, "name of the layout, where the columns alone do not tell it; detected by default", check=_format
    )
    columns: Mapping[str, str] = parameter(
        {}, "new names of columns: the name in the data, and the name that the layout knows", check=_columns
    )
    template_args: Mapping[str, Any] = parameter(
        {}, "further arguments of the tokenizer's chat template, such as {enable_thinking: false}", check=_arguments
    )
    prerendered: bool = parameter(
        False,
        "whether plain texts hold the tokens of the chat template already. Off, the text of a control token, such as "
        "</s>, stays text in them; on, it becomes the token. Messages are not affected",
    )
    pairs: str = parameter(
        "all",
        "pairs made of a ranking: all makes one of every two completions that are not tied, so that nothing is lost; "
        "best-worst makes one of the best and the worst",
        choices=PAIRS,
    )
    max_dropped: float = parameter(
        0.5,
        "largest share of rows, ties aside, that may be dropped before the run refuses",
        at_least=0,
        at_most=1,
    )
    seed: int = parameter(0, "seed of the partners that KTO scores under another prompt", at_least=0)
