"""One row of preference data in memory, whatever file it came from."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

Text = str | list[dict]
"""A plain string, or messages: ``[{"role": ..., "content": ...}, ...]``."""


@dataclass(frozen=True, kw_only=True)
class BaseExample:
    """What examples of all kinds have.

    Attributes:
        labels: the labels of the whole example that are known, by name (see `prefopt.core.labels`).
        columns: the other fields of the row.
        row: the number of the row that it was made of, from 0.
    """

    labels: dict[str, float | bool] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    row: int = field(default=0, compare=False, repr=False)

    @property
    def known(self) -> dict[str, float | bool]:
        """The labels of the example, those with a field of their own among them."""
        return self.labels


@dataclass(frozen=True)
class PairExample(BaseExample):
    """A chosen and a rejected completion of one prompt.

    Attributes:
        prompt: what both answer.
        chosen, rejected: y_w and y_l. As messages they may hold several turns; only assistant turns count.
    """

    kind: ClassVar[str] = "pairs"
    prompt: Text
    chosen: Text
    rejected: Text


@dataclass(frozen=True)
class LabelledExample(BaseExample):
    """A completion marked desirable or undesirable."""

    kind: ClassVar[str] = "labelled"
    prompt: Text
    completion: Text
    desirable: bool

    @property
    def known(self) -> dict[str, float | bool]:
        return {"desirable": self.desirable, **self.labels}


@dataclass(frozen=True)
class RankedExample(BaseExample):
    """Several completions of one prompt, judged against each other, or one that is rated.

    Attributes:
        prompt: what all answer.
        completions: the answers, in any order.
        scores: scalar reward of each, higher is better, None for one that was not judged; None where nobody scored.
        ranks: place of each, 1 is best; they decide the order where they are given.
    """

    kind: ClassVar[str] = "ranked"
    prompt: Text
    completions: tuple[Text, ...]
    scores: tuple[float | None, ...] | None = None
    ranks: tuple[float | None, ...] | None = None

    @property
    def standing(self) -> tuple[float | None, ...]:
        """How each completion stands, higher is better; None for one that was not judged."""
        if self.ranks is None:
            return self.scores or (None,) * len(self.completions)
        return tuple(None if rank is None else -rank for rank in self.ranks)

    @property
    def judged(self) -> list[int]:
        """Which completions were judged, from the best to the worst; equals in the order of the row."""
        standing = self.standing
        known = [number for number, value in enumerate(standing) if value is not None]
        return sorted(known, key=lambda number: -standing[number])


@dataclass(frozen=True)
class DemonstrationExample(BaseExample):
    """A completion to imitate.

    A conversation of several turns is split before its first assistant turn: ``prompt`` holds the turns before it and
    ``completion`` all the others. The loss is taken on every assistant turn and on nothing else.
    """

    kind: ClassVar[str] = "demonstrations"
    prompt: Text
    completion: Text

    @property
    def messages(self) -> list[dict]:
        """The whole conversation; a plain prompt is a user turn and a plain completion an assistant turn."""
        prompt = [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt
        end = self.completion
        return [*prompt, *([{"role": "assistant", "content": end}] if isinstance(end, str) else end)]


@dataclass(frozen=True)
class PromptExample(BaseExample):
    """A prompt to answer; ``columns`` are the other fields of the row, handed to reward functions."""

    kind: ClassVar[str] = "prompts"
    prompt: Text


Example = PairExample | LabelledExample | RankedExample | DemonstrationExample | PromptExample

KINDS: dict[str, type] = {
    cls.kind: cls for cls in (PairExample, LabelledExample, RankedExample, DemonstrationExample, PromptExample)
}
