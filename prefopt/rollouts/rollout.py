"""A rollout: prompts, their sampled completions and rewards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.data import TokenizedExample
from prefopt.rollouts.sample import Sample

POLICY, REFERENCE, MIXTURE = "policy", "reference", "mixture"
SAMPLERS = (POLICY, REFERENCE, MIXTURE)


@dataclass(frozen=True)
class Group:
    """A prompt, its sampled completions, and their rewards.

    Attributes:
        prompt: The example of the dataset.
        samples: Its completions; those of each sampler together, in the order of the processor's ``samplers``.
        rewards: One reward for each sample.
        tokens: Per-token arrays of each sample by name (``old_logps``, ``ref_logps``, ``values``), float32, where the
            processor needs them.
        parts: The values of each reward function by its name, without its weight, in the order in which the functions
            were given; empty where nothing is known of them.
    """

    prompt: TokenizedExample
    samples: list[Sample]
    rewards: list[float]
    tokens: list[dict[str, np.ndarray]] = field(default_factory=list)
    parts: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """What a `RolloutProcessor` turns into training examples.

    Attributes:
        groups: The groups, those of all processes.
        max_new_tokens: The limit of tokens that was asked for.
        kl_coef: β of the KL in the reward, as its controller has it now.
    """

    groups: Sequence[Group]
    max_new_tokens: int
    kl_coef: float = 0.0

    @property
    def rewards(self) -> Tensor:
        """Of all completions, group after group, [n] in float64."""
        return torch.tensor([reward for group in self.groups for reward in group.rewards], dtype=torch.float64)

    @property
    def group(self) -> Tensor:
        """The number of the group of each completion, [n]."""
        sizes = torch.tensor([len(group.samples) for group in self.groups])
        return torch.arange(len(self.groups)).repeat_interleave(sizes)

    @property
    def limits(self) -> Tensor:
        """The number of tokens at which each completion was cut, or would have been, [n]."""
        samples = [sample for group in self.groups for sample in group.samples]
        return torch.tensor([self.max_new_tokens if one.limit is None else one.limit for one in samples])

    @property
    def mask(self) -> Tensor:
        """Where completions have tokens, right-padded, [n, t]."""
        lengths = torch.tensor([len(sample.ids) for group in self.groups for sample in group.samples])
        return torch.arange(int(lengths.max())) < lengths[:, None]

    def tokens(self, name: str) -> Tensor:
        """Per-token values by name, right-padded with 0, [n, t] in float64."""
        mask = self.mask
        flat = np.concatenate([tokens[name] for group in self.groups for tokens in group.tokens])
        return torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, torch.from_numpy(flat).double())

    def examples(self, **values: Tensor) -> list[TokenizedExample]:
        """One example per completion, with per-token values [n, t] as labels, and the scored ones that groups have."""
        examples, row = [], 0
        for group in self.groups:
            for i, sample in enumerate(group.samples):
                own = {name: value[row, : len(sample.ids)].float().numpy() for name, value in values.items()}
                scored = group.tokens[i]
                kept = {name: scored[name] for name in ("old_logps", "ref_logps") if name in scored}
                examples.append(example_of(group.prompt, sample, **kept, **own))
                row += 1
        return examples


def example_of(prompt: TokenizedExample, *samples: Sample, **labels: Any) -> TokenizedExample:
    """A training example of a prompt and sampled completions."""
    return TokenizedExample(
        id=prompt.id,
        prompt=prompt.prompt,
        completions=tuple(sample.ids for sample in samples),
        masks=None,
        labels=labels,
        source=prompt.source,
    )
