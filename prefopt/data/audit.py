"""What became of the rows of a dataset, counted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from prefopt.core.errors import DataError

# Rows that carry no information are no fault of the settings, and do not count towards `max_dropped`.
_HARMLESS = ("ties",)


@dataclass(frozen=True)
class Audit:
    """Counts of the rows read, kept, cut and dropped.

    Attributes:
        kind: pairs, labelled, ranked, demonstrations or prompts.
        read, kept, cut: numbers of examples; those cut are among those kept.
        dropped: reason → number.
        max_length: the limit in tokens.
        left: reason → number of completions that left their group, which is kept.
        lengths: tokens of (prompt, whole row) before any cut, for every row that could be tokenised.
    """

    kind: str
    read: int
    kept: int
    cut: int
    dropped: Mapping[str, int]
    max_length: int
    lengths: Sequence[tuple[int, int]] = field(default=(), repr=False)
    left: Mapping[str, int] = field(default_factory=dict)

    def quantiles(self) -> dict[str, dict[str, int]]:
        """``{"prompt": {"50%": …, "90%": …, "max": …}, "row": …}`` in tokens, before any cut; empty without rows."""
        if not self.lengths:
            return {}
        table = np.asarray(self.lengths)
        names = {"50%": 0.5, "90%": 0.9, "max": 1.0}
        return {
            what: {name: int(np.quantile(table[:, column], q, method="higher")) for name, q in names.items()}
            for column, what in enumerate(("prompt", "row"))
        }

    def lines(self) -> list[str]:
        """What to show to the user: the counts with their reasons, and the lengths."""
        cut = f" ({self.cut} cut to {self.max_length} tokens)" if self.cut else ""
        line = f"{self.kind}: {self.read} read, {self.kept} kept{cut}"
        lines = [line + (f", {self._drops()}" if self.dropped else ", none dropped")]
        if self.left:
            reasons = ", ".join(f"{count} {reason}" for reason, count in _by_count(self.left))
            lines.append(f"completions that left their group: {reasons}")
        if self.lengths:
            sizes = self.quantiles()
            parts = [
                f"{what} {size['50%']} (median), {size['90%']} (90 %), {size['max']} (longest)"
                for what, size in (("prompt", sizes["prompt"]), ("prompt with completion", sizes["row"]))
            ]
            lines.append(f"tokens before any cut: {'; '.join(parts)}; limit {self.max_length}")
        return lines

    def check(self, max_dropped: float) -> None:
        """Refuse a dataset that lost too much.

        Raises:
            DataError: nothing is left, or more than the share ``max_dropped`` was dropped (ties aside).
        """
        if self.kept == 0:
            raise DataError(f"nothing is left to train on. {self.lines()[0]}. {self._remedy()}.")
        lost = sum(count for reason, count in self.dropped.items() if reason not in _HARMLESS)
        share = lost / self.read
        if share > max_dropped:
            accept = math.ceil(share * 100) / 100
            raise DataError(
                f"{share:.0%} of the rows would be dropped, more than data.max_dropped={max_dropped:g}. "
                f"{self.lines()[0]}. {self._remedy()}, or accept it with data.max_dropped={accept:g}."
            )

    def _drops(self) -> str:
        total = sum(self.dropped.values())
        return f"{total} dropped: " + ", ".join(f"{count} {reason}" for reason, count in _by_count(self.dropped))

    def _remedy(self) -> str:
        main = max(self.dropped, key=lambda reason: self.dropped[reason], default="")
        if main.startswith("longer than"):
            return "Raise data.max_length, or cut completions with data.truncation='keep-start'"
        if main.startswith("with a prompt of"):
            return "Raise data.max_length, or cut prompts with data.truncation='keep-end'"
        if main.startswith("with a completion of"):
            return "Raise data.max_length, or cut completions with data.truncation='keep-start'"
        return "Correct these rows, or, if they were misread, name their layout in data.format"


def _by_count(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(reasons.items(), key=lambda item: -item[1])
