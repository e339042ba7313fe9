"""Rollout processors that select: which completions are imitated, and which pairs are compared."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from prefopt.core.batches import Batch, Demonstrations, Pairs
from prefopt.core.recipe import Range
from prefopt.core.settings import check_settings, parameter
from prefopt.data import TokenizedExample
from prefopt.rollouts.processor import RolloutProcessor
from prefopt.rollouts.rollout import POLICY, REFERENCE, Group, Rollout, example_of
from prefopt.rollouts.sample import Sample


@dataclass(frozen=True, kw_only=True)
class Selection(RolloutProcessor):
    """Base of the processors below: examples of one group at a time."""

    batch: ClassVar[type[Batch]] = Pairs

    def __post_init__(self) -> None:
        check_settings(self, type(self).__name__)

    def keep_group(self, group: Group) -> bool:
        return bool(self.of_group(group))

    def of_group(self, group: Group) -> list[TokenizedExample]:
        """The examples that a group yields; none where it teaches nothing."""
        raise NotImplementedError

    def __call__(self, rollout: Rollout) -> list[TokenizedExample]:
        return [example for group in rollout.groups for example in self.of_group(group)]


@dataclass(frozen=True, kw_only=True)
class BestOf(Selection):
    """The completions with the highest rewards, as demonstrations (best-of-n; ties go to the first sampled)."""

    batch: ClassVar[type[Batch]] = Demonstrations

    keep: int = parameter(1, "completions kept per prompt", at_least=1)

    def examples_per_prompt(self, n: int) -> int:
        return min(self.keep, n)

    def of_group(self, group: Group) -> list[TokenizedExample]:
        ranked = sorted(range(len(group.samples)), key=lambda i: -group.rewards[i])
        return [example_of(group.prompt, group.samples[i]) for i in ranked[: self.keep]]


@dataclass(frozen=True, kw_only=True)
class AboveThreshold(Selection):
    """Every completion whose reward reaches a threshold, as a demonstration (ReST, expert iteration).

    At most ``keep`` of a prompt, drawn by their order of sampling, so that easy prompts do not outweigh the others; a
    prompt without any is replaced by another one.
    """

    batch: ClassVar[type[Batch]] = Demonstrations

    threshold: float = parameter(0.5, "the least reward that is imitated")
    keep: int = parameter(10, "completions kept per prompt at the most", at_least=1)

    def examples_per_prompt(self, n: int) -> int:
        return min(self.keep, n)

    def of_group(self, group: Group) -> list[TokenizedExample]:
        good = [sample for sample, reward in zip(group.samples, group.rewards, strict=True) if reward >= self.threshold]
        return [example_of(group.prompt, sample) for sample in good[: self.keep]]


@dataclass(frozen=True, kw_only=True)
class BestAndWorst(Selection):
    """The completion with the highest reward against the one with the lowest, as a pair.

    A group whose rewards are all equal says nothing, and another prompt takes its place.
    """

    compares: ClassVar[int] = 2

    def examples_per_prompt(self, n: int) -> int:
        return 1

    def of_group(self, group: Group) -> list[TokenizedExample]:
        order = sorted(range(len(group.samples)), key=lambda i: -group.rewards[i])
        return _pair(group, order[0], order[-1])


@dataclass(frozen=True, kw_only=True)
class PolicyAgainstReference(Selection):
    """One completion of the policy against one of the reference, as a pair (XPO); with more of each, i against i."""

    samplers: ClassVar[tuple[str, ...]] = (POLICY, REFERENCE)

    def examples_per_prompt(self, n: int) -> int:
        return n // 2

    def of_group(self, group: Group) -> list[TokenizedExample]:
        half = len(group.samples) // 2
        examples = []
        for i in range(half):
            own, other = group.rewards[i], group.rewards[half + i]
            if own != other:
                chosen, rejected = (i, half + i) if own > other else (half + i, i)
                examples += _pair(group, chosen, rejected, sampled_by_reference=own < other)
        return examples


@dataclass(frozen=True, kw_only=True)
class StatisticalRejection(Selection):
    """Statistical rejection sampling (RSO, Liu et al. 2023, arXiv 2309.06657), then pairs by reward.

    Of n candidates of the reference a completion is accepted with probability exp((r − r_max)/β): the accepted follow
    π_ref·exp(r/β). As published, completions are accepted without replacement, identical ones count once, and r_max is
    that of the candidates left when a pass over them begins; passes go on until ``accept`` are chosen. The accepted
    are paired in a random order, the higher reward being chosen; ties make no pair.
    """

    samplers: ClassVar[tuple[str, ...]] = (REFERENCE,)
    compares: ClassVar[int] = 2

    temperature: float = parameter(
        0.5, "β of the acceptance: 0.5 prefers good completions, ∞ takes any", above=0, tune=Range(0.05, 5.0)
    )
    accept: int = parameter(4, "completions accepted per prompt; pairs are half as many", at_least=2)

    def examples_per_prompt(self, n: int) -> int:
        return min(self.accept, n) // 2

    def of_group(self, group: Group) -> list[TokenizedExample]:
        # Its own draws, from the completions themselves: asking twice must give the same answer.
        random = np.random.default_rng([int(sample.ids.sum()) for sample in group.samples])
        distinct = list({sample.ids.tobytes(): i for i, sample in reversed(list(enumerate(group.samples)))}.values())
        rewards = [group.rewards[i] for i in distinct]
        taken = [distinct[i] for i in accept_without_replacement(rewards, self.accept, self.temperature, random)]
        random.shuffle(taken)
        examples = []
        for first, second in zip(taken[0::2], taken[1::2], strict=False):
            better, worse = sorted((first, second), key=lambda i: -group.rewards[i])
            examples += _pair(group, better, worse)
        return examples


def accept_without_replacement(
    rewards: list[float], accept: int, temperature: float, random: np.random.Generator
) -> list[int]:
    """Which candidates the published algorithm of RSO accepts (its algorithm 1): distinct ones, in order of acceptance.

    Args:
        rewards: The rewards of the candidates, which must be distinct completions.
        accept: The number to accept; fewer where there are no more candidates.
        temperature: β; towards ∞ all are accepted in order, towards 0 the highest reward first.
        random: The source of the draws.
    """
    left, taken = list(range(len(rewards))), []
    while left and len(taken) < accept:
        best = max(rewards[i] for i in left)
        for i in list(left):
            if len(taken) < accept and random.random() < np.exp((rewards[i] - best) / temperature):
                taken.append(i)
                left.remove(i)
    return taken


def accepted(rewards: np.ndarray, best: float, temperature: float, random: np.random.Generator) -> np.ndarray:
    """Independent rejection sampling: True with probability exp((r − best)/β); the accepted follow π_ref·exp(r/β).

    Args:
        rewards: The rewards of independent samples of π_ref.
        best: A bound that no reward exceeds.
        temperature: β.
        random: The source of the draws.
    """
    return random.random(len(rewards)) < np.exp((rewards - best) / temperature)


def _pair(group: Group, chosen: int, rejected: int, **labels: bool) -> list[TokenizedExample]:
    """A pair with its rewards as scores; none where they are equal."""
    high, low = group.rewards[chosen], group.rewards[rejected]
    if not high > low:
        return []
    samples: tuple[Sample, Sample] = group.samples[chosen], group.samples[rejected]
    return [example_of(group.prompt, *samples, chosen_score=high, rejected_score=low, **labels)]
