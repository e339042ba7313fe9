"""What became of the rows of a dataset, row by row and counted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from prefopt.core.errors import DataError
from prefopt.data.reasons import CORRECT, Cause, Skipped, tally


@dataclass(frozen=True)
class Audit:
    """Counts of the rows read, kept, cut and dropped.

    Attributes:
        kind: pairs, labelled, ranked, demonstrations or prompts.
        read, kept, cut: Numbers of examples; those cut are among those kept.
        dropped: The row of each example that was dropped, with the cause, in the order of the rows.
        max_length: The limit in tokens.
        lengths: Tokens of (prompt, whole row) before any cut, for every row that could be tokenized.
        left: The row of each completion that left its group, with the cause; the group is kept.
        control: The rows with the text of control tokens in them, such as ``</s>``, which stays text.
    """

    kind: str
    read: int
    kept: int
    cut: int
    dropped: Sequence[Skipped]
    max_length: int
    lengths: Sequence[tuple[int, int]] = field(default=(), repr=False)
    left: Sequence[Skipped] = ()
    control: Sequence[int] = ()

    @property
    def causes(self) -> dict[Cause, int]:
        """Why examples were dropped, and how many for each cause, the most frequent one first."""
        return dict(tally(self.dropped))

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
        lost = f"{len(self.dropped)} dropped: {_counted(self.dropped)}" if self.dropped else "none dropped"
        lines = [f"{line}, {lost}"]
        if self.left:
            lines.append(f"completions that left their group: {_counted(self.left)}")
        if self.control:
            lines.append(f"{len(self.control)} hold the text of control tokens, which stays text")
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
            DataError: nothing is left, or more than the share ``max_dropped`` was dropped (harmless rows aside).
        """
        if self.kept == 0:
            raise DataError(f"nothing is left to train on. {self.lines()[0]}. {self._remedy()}.")
        share = sum(not cause.reason.harmless for _, cause in self.dropped) / self.read
        if share > max_dropped:
            accept = math.ceil(share * 100) / 100
            raise DataError(
                f"{share:.0%} of the rows would be dropped, more than data.max_dropped={max_dropped:g}. "
                f"{self.lines()[0]}. {self._remedy()}, or accept it with data.max_dropped={accept:g}."
            )

    def _remedy(self) -> str:
        """What helps most of the rows."""
        return next(iter(self.causes)).reason.remedy if self.dropped else CORRECT


def _counted(skipped: Sequence[Skipped]) -> str:
    return ", ".join(f"{count} {cause}" for cause, count in tally(skipped))
