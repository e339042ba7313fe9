"""How an algorithm is trained: declared beside its loss, without torch, so that lists and explanations can read it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prefopt.core.errors import UsageError

COUPLED_BATCH = 16
"""Examples of a step whose losses depend on each other, so that the step must be one forward pass."""


@dataclass(frozen=True)
class Range:
    """Where to look for a value when tuning it, evenly in its logarithm.

    Attributes:
        low: The least value.
        high: The greatest value.
        source: Who published that sweep; empty where it is prefopt's own suggestion.
    """

    low: float
    high: float
    source: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise UsageError(f"Range({self.low!r}, {self.high!r}) is searched in logarithms: 0 < low < high must hold.")

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def times(self, factor: float) -> "Range":
        """The range with both ends multiplied."""
        return Range(rounded(self.low * factor), rounded(self.high * factor), self.source)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a paper trained with, as far as it is known.

    Attributes:
        rate: The learning rate; None where it is not known.
        batch: Examples per optimizer step over all devices; None where it is not known.
        values: Hyperparameters of the loss by the names that prefopt gives them, such as ``{"beta": 0.1}``.
        source: Where the numbers stand: a section of the paper, the authors' code, or who reports them.
    """

    rate: float | None = None
    batch: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Defaults for `transformers.TrainingArguments`.

    Attributes:
        full: The learning rate of a full fine-tune.
        adapter: The learning rate of LoRA and QLoRA. By default ten times `full`, which suits the low-rank factors of
            the same model.
        batch: Examples per optimizer step and device (micro-batch × accumulation).
        micro_batch: Examples per forward pass.
        epochs: Passes over the data.
        schedule: The schedule of the learning rate, as transformers calls it.
        paper: The paper's own settings, as far as they are known.
        reason: Why the recipe departs from the paper, or where its numbers come from if the paper's are not known.
        tune: The range of `full` to tune in. By default from a fifth of `full` to five times it.
        declared: False for the defaults of an algorithm that declares no recipe.
    """

    full: float
    adapter: float = 0.0
    batch: int = 32
    micro_batch: int = 4
    epochs: float = 1.0
    schedule: str = "cosine"
    paper: Published = Published()
    reason: str = ""
    tune: Range | None = None
    declared: bool = True

    def __post_init__(self) -> None:
        if not self.adapter:
            object.__setattr__(self, "adapter", rounded(10 * self.full))
        if self.tune is None:
            object.__setattr__(self, "tune", Range(rounded(self.full / 5), rounded(self.full * 5)))
        if self.batch % self.micro_batch:
            raise UsageError(
                f"Recipe(batch={self.batch}, micro_batch={self.micro_batch}): a step must be whole micro-batches."
            )

    def rates(self, *, trains_adapter: bool) -> Range:
        """The learning rates to tune in."""
        return self.tune.times(self.adapter / self.full) if trains_adapter else self.tune

    def coupled(self) -> "Recipe":
        """The recipe for a loss that compares the examples of a batch: a step of one micro-batch."""
        if self.batch == self.micro_batch:
            return self
        return replace(self, batch=COUPLED_BATCH, micro_batch=COUPLED_BATCH)

    def in_words(self) -> str:
        """Learning rates, batch, epochs and schedule on one line."""
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs:g} epochs"
        return (
            f"learning rate {self.full:g} ({self.adapter:g} for LoRA and QLoRA), batch {self.batch} in micro-batches "
            f"of {self.micro_batch}, {epochs}, {self.schedule} schedule"
        )


def rounded(value: float) -> float:
    """To six digits: 10 * 1e-6 is not 1e-5 in binary, and such numbers are printed."""
    return float(f"{value:.6g}")


DEFAULTS = Recipe(full=1e-6, declared=False)
"""The recipe of an objective that declares none."""
ONLINE_DEFAULTS = Recipe(full=1e-6, batch=16, declared=False)
"""The recipe of an online algorithm that declares none; a batch counts prompts, of which each has completions."""
