"""What is learned from a group of sampled completions."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

from prefopt.batches import Batch, Demonstrations
from prefopt.data import TokenizedExample
from prefopt.objective import check_parameter, parameter
from prefopt.rollouts.generator import Sample


@dataclass(frozen=True)
class Group:
    """A prompt, its sampled completions, and their rewards."""

    prompt: TokenizedExample
    samples: list[Sample]
    rewards: list[float]


class Selection(Protocol):
    """From groups to training examples of one kind. Implementations are frozen dataclasses of hyperparameters."""

    batch: ClassVar[type[Batch]]

    def __call__(self, group: Group) -> list[TokenizedExample]:
        """The examples that a group yields; each with the group's prompt."""
        ...


@dataclass(frozen=True, kw_only=True)
class BestOf:
    """The completions with the highest rewards, as demonstrations (best-of-n; ties go to the first sampled)."""

    batch: ClassVar[type[Batch]] = Demonstrations

    keep: int = parameter(1, "completions kept per prompt", at_least=1)

    def __post_init__(self) -> None:
        for field in fields(self):
            check_parameter("rejection_sampling", field, getattr(self, field.name))

    def __call__(self, group: Group) -> list[TokenizedExample]:
        ranked = sorted(range(len(group.samples)), key=lambda i: -group.rewards[i])
        return [_example(group.prompt, group.samples[i]) for i in ranked[: self.keep]]


def _example(prompt: TokenizedExample, *samples: Sample, **labels: Any) -> TokenizedExample:
    return TokenizedExample(
        id=prompt.id,
        prompt=prompt.prompt,
        completions=tuple(sample.ids for sample in samples),
        masks=None,
        labels=labels,
        source=prompt.source,
    )
