"""What a user can say about data, validated when it is said."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from prefopt.errors import UsageError, did_you_mean

TRUNCATION = ("drop", "keep-start", "keep-end")


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
    max_dropped: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_length is not None and (not _is_int(self.max_length) or self.max_length < 2):
            raise UsageError(f"data: max_length={self.max_length!r} must be a whole number of at least 2 tokens.")
        if self.truncation not in TRUNCATION:
            near = did_you_mean(str(self.truncation), TRUNCATION)
            raise UsageError(f"data: truncation={self.truncation!r} is not one of {', '.join(TRUNCATION)}.{near}")
        if not isinstance(self.split, str) or not self.split:
            raise UsageError(f"data: split={self.split!r} must be the name of a split.")
        share = self.max_dropped
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise UsageError(f"data: max_dropped={share!r} must be a share between 0 and 1.")
        if not _is_int(self.seed):
            raise UsageError(f"data: seed={self.seed!r} must be a whole number.")
        self._check_mappings()
        self._check_format()

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
        return cls(**(value or {}))

    def _check_mappings(self) -> None:
        for name in ("columns", "template_args"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                raise UsageError(f"data: {name}={value!r} must be a mapping with names as keys.")
        for old, new in self.columns.items():
            if not isinstance(new, str):
                raise UsageError(f"data: columns[{old!r}]={new!r} must be the name of a column.")

    def _check_format(self) -> None:
        from prefopt.data.formats import FORMATS

        if self.format is not None and self.format not in FORMATS:
            near = did_you_mean(str(self.format), FORMATS)
            raise UsageError(f"data: there is no format {self.format!r}.{near} The formats are {', '.join(FORMATS)}.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
