"""The training data of an online run: micro-batches made of the policy's own completions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from prefopt.data import TokenizedExample, collate
from prefopt.rollouts.generator import GenerationSettings, Generator, Sample
from prefopt.rollouts.rewards import Reward
from prefopt.rollouts.selection import Group, Selection


class RolloutLoader:
    """Iterates over micro-batches that are sampled when they are asked for, so each sees the newest weights.

    It must not be wrapped in a loader that fetches ahead.

    Args:
        prompts: loader of lists of prompt examples.
        model: gives the policy to sample from.
        generator: samples completions.
        settings: how.
        reward: scores them.
        selection: turns each group into training examples.
        pad_token_id: for collation.
        record: receives per-completion values to log (reward, length ...).
        seed: samples every pass from this seed, without touching the global random state; None continues it.
    """

    def __init__(
        self,
        prompts: DataLoader,
        *,
        model: Callable[[], nn.Module],
        generator: Generator,
        settings: GenerationSettings,
        reward: Reward,
        selection: Selection,
        pad_token_id: int,
        record: Callable[[dict[str, Tensor]], None],
        seed: int | None = None,
    ) -> None:
        self.prompts = prompts
        self.dataset = prompts.dataset
        self.model = model
        self.generator = generator
        self.settings = settings
        self.reward = reward
        self.selection = selection
        self.pad_token_id = pad_token_id
        self.record = record
        self.seed = seed

    def __len__(self) -> int:
        return len(self.prompts)

    def set_epoch(self, epoch: int) -> None:
        self.prompts.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, prompts in enumerate(self.prompts):
            with _seeded(None if self.seed is None else self.seed + number):
                groups = self.roll_out(prompts)
            examples = [example for group in groups for example in self.selection(group)]
            yield collate(examples, pad_token_id=self.pad_token_id)

    def roll_out(self, prompts: list[TokenizedExample]) -> list[Group]:
        """Sample and score ``settings.n`` completions for each prompt."""
        samples = self.generator.generate(self.model(), [prompt.prompt for prompt in prompts], self.settings)
        flat = [sample for group in samples for sample in group]
        repeated = [prompt.source for prompt in prompts for _ in range(self.settings.n)]
        rewards, parts = self.reward(
            [source.prompt for source in repeated], [sample.text for sample in flat], _columns(repeated)
        )
        groups = [
            Group(prompt, group, rewards[i * self.settings.n : (i + 1) * self.settings.n])
            for i, (prompt, group) in enumerate(zip(prompts, samples, strict=True))
        ]
        self._record(flat, rewards, parts, groups)
        return groups

    def _record(
        self, flat: list[Sample], rewards: list[float], parts: dict[str, list[float]], groups: list[Group]
    ) -> None:
        values = {
            "reward": rewards,
            "reward/best": [max(group.rewards) for group in groups],
            "completions/length": [float(len(sample.ids)) for sample in flat],
            "completions/ended": [float(sample.ended) for sample in flat],
        }
        if len(parts) > 1:
            values |= {f"reward/{name}": part for name, part in parts.items()}
        self.record({name: torch.tensor(value) for name, value in values.items()})


def _columns(sources: list[Any]) -> dict[str, list[Any]]:
    names = {name for source in sources for name in source.columns}
    return {name: [source.columns.get(name) for source in sources] for name in sorted(names)}


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
