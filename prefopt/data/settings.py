"""What a user can say about data, validated when it is said."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from prefopt.core.errors import UsageError, did_you_mean
from prefopt.data.known import FORMATS

TRUNCATION = ("drop", "keep-start", "keep-end")
PAIRS = ("all", "best-worst")


@dataclass(frozen=True)
class DataSettings:
    """How rows become tokens.

    Attributes:
        max_length: tokens of prompt and completion together; None means min(2048, the model's context).
        truncation: what to do with a longer row. ``"drop"`` leaves it out; ``"keep-start"`` cuts the end of the
            completion (a prompt that fills the limit is dropped); ``"keep-end"`` cuts the start of the prompt (a
            completion that fills the limit is dropped). Dropped rows are counted in the audit.
        split: the split to read, where the source has several.
        format: name of the layout, where the columns alone do not tell it; None detects it.
        columns: rename before reading: the column's name in the data → the name that the layout knows.
        template_args: extra arguments of the tokenizer's chat template, such as ``{"enable_thinking": False}``.
        pairs: how a ranking becomes pairs. ``"all"`` makes one of every two completions that are not tied, so that
            nothing is lost; ``"best-worst"`` one of the best and the worst.
        max_dropped: the largest share of rows, 0 to 1, that may be dropped (ties aside) before the run refuses.
        seed: of the partners that KTO scores under another prompt.

    Raises:
        UsageError: a value that is not allowed.
    """

    max_length: int | None = None
    truncation: str = "drop"
    split: str = "train"
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    template_args: Mapping[str, Any] = field(default_factory=dict)
    pairs: str = "all"
    max_dropped: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _check({item.name: getattr(self, item.name) for item in dataclasses.fields(self)})

    @classmethod
    def of(cls, value: "DataSettings | Mapping[str, Any] | None") -> Self:
        """Settings from settings, a mapping of field names, or None for the defaults.

        Raises:
            UsageError: an unknown field, with the nearest one, or a value that is not allowed.
        """
        if isinstance(value, cls):
            return value
        if value is not None and not isinstance(value, Mapping):
            raise UsageError(f"data={value!r} must be a mapping of settings or a DataSettings.")
        known = [item.name for item in dataclasses.fields(cls)]
        for name in value or {}:
            if name not in known:
                near = did_you_mean(str(name), known)
                raise UsageError(f"data has no setting {name!r}.{near} It has {', '.join(known)}.")
        _check(value or {})
        return cls(**(value or {}))


def _check(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        problem = _CHECKS[name](value)
        if problem:
            raise UsageError(f"data: {name}={value!r} {problem}")


def _length(value: Any) -> str:
    return "" if value is None or (_is_int(value) and value >= 2) else "must be a whole number of at least 2 tokens."


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value in allowed:
            return ""
        return f"is not one of {', '.join(allowed)}.{did_you_mean(str(value), allowed)}"

    return check


def _split(value: Any) -> str:
    return "" if isinstance(value, str) and value else "must be the name of a split."


def _format(value: Any) -> str:
    if value is None or value in FORMATS:
        return ""
    return f"is no known format.{did_you_mean(str(value), FORMATS)} The formats are {', '.join(FORMATS)}."


def _columns(value: Any) -> str:
    fine = isinstance(value, Mapping) and all(isinstance(name, str) for pair in value.items() for name in pair)
    return "" if fine else "must map names of columns in the data to names that a format knows."


def _arguments(value: Any) -> str:
    fine = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
    return "" if fine else "must map names of template arguments to values."


def _share(value: Any) -> str:
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    return "" if fine else "must be a share between 0 and 1."


def _seed(value: Any) -> str:
    return "" if _is_int(value) and value >= 0 else "must be a whole number that is not negative."


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_CHECKS = {
    "max_length": _length,
    "truncation": _one_of(*TRUNCATION),
    "split": _split,
    "format": _format,
    "columns": _columns,
    "template_args": _arguments,
    "pairs": _one_of(*PAIRS),
    "max_dropped": _share,
    "seed": _seed,
}
"""What is wrong with a value, as the end of a sentence; empty if nothing is."""
