"""The tokens of a micro-batch: how many there are, how they lie, and how many of them reach the vocabulary head."""

from dataclasses import dataclass

import numpy as np

from prefopt.data import TokenizedExample, collate
from prefopt.scoring.flat import Flat
from prefopt.scoring.sharing import GAIN


@dataclass(frozen=True)
class Segments:
    """Prompts and the completions that follow them.

    Attributes:
        groups: tokens of a prompt, and of each of its completions.
    """

    groups: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def rows(self) -> list[int]:
        """Tokens of every completion with its prompt."""
        return [prompt + length for prompt, completions in self.groups for length in completions]

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns where every completion carries its prompt."""
        return len(self.rows), max(self.rows)

    @property
    def targets(self) -> int:
        """Tokens that reach the vocabulary head."""
        return sum(sum(completions) for _, completions in self.groups)

    def flat(self) -> Flat | None:
        """The sequence in which completions share their prompts; None where it is not shorter by enough to be used."""
        examples = [
            TokenizedExample(number, np.full(prompt, number, np.int32), (np.full(length, -1, np.int32),))
            for number, (prompt, completions) in enumerate(self.groups)
            for length in completions
        ]
        padded = collate(examples).rows
        flat = Flat.of(padded)
        return flat if flat.input_ids.numel() <= GAIN * padded.input_ids.numel() else None
