"""From prompts to training examples: sample → reward → score → advantages → examples."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from prefopt.core.errors import UsageError
from prefopt.data import TokenizedExample
from prefopt.models import Critic, Reference
from prefopt.rewards.reward import Reward
from prefopt.rollouts.draws import SampleKeys
from prefopt.rollouts.generator import Generator, Mixture
from prefopt.rollouts.kl_controller import KLController
from prefopt.rollouts.processor import RolloutProcessor
from prefopt.rollouts.rollout import MIXTURE, POLICY, REFERENCE, Group, Rollout
from prefopt.rollouts.rollout_metrics import completion_metrics, critic_metrics, generator_gap
from prefopt.rollouts.sample import Sample, columns_of
from prefopt.rollouts.settings import GenerationSettings
from prefopt.rollouts.token_scorer import TokenScorer

TRIES = 10
"""How many times the prompts of a rollout are drawn again for groups that teach nothing."""

Prompts = Sequence[tuple[int, TokenizedExample]]
"""Prompts with their places in the stream, which no two prompts of a rollout share."""
Draw = Callable[[int], Prompts]
"""From a number to this process's share of that many prompts, the next ones in order."""


class RolloutCollector:
    """Collects rollouts with the newest weights and makes training examples of them.

    Processes share the sampling, the rewards and the scoring. What is sampled for a prompt depends on the seed and on
    the prompt's place in the stream, and every process then makes the examples of all; so several processes learn from
    the same examples as one does.

    Args:
        policy: The model that is trained.
        processor: What turns a rollout into examples, by advantages or by selection.
        generator: What samples completions.
        settings: How completions are sampled.
        reward: What scores completions.
        pad_token_id: The token that rows are padded with.
        reference: The reference model, where the processor or one of its samplers needs it.
        critic: The critic, where the processor reads values.
        rows: The number of completions in a forward pass of scoring.
        gather: Maps a list of this process to those of all processes, concatenated.
        autocast: Gives the context of mixed precision.
        record: Receives values to log, one per completion or rollout.

    Attributes:
        controller: The coefficient of the KL in the reward.
    """

    def __init__(
        self,
        policy: nn.Module,
        processor: RolloutProcessor,
        *,
        generator: Generator,
        settings: GenerationSettings,
        reward: Reward,
        pad_token_id: int,
        reference: Reference | None = None,
        critic: Critic | None = None,
        rows: int = 16,
        gather: Callable[[list], list] = lambda own: own,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        record: Callable[[dict[str, Tensor]], None] = lambda values: None,
    ) -> None:
        self.policy, self.processor, self.generator = policy, processor, generator
        self.settings, self.reward, self.pad_token_id = settings, reward, pad_token_id
        self.reference, self.gather, self.autocast, self.record = reference, gather, autocast, record
        self.controller = KLController(processor.kl_penalty)
        self.scorer = TokenScorer(
            policy,
            pad_token_id=pad_token_id,
            temperature=settings.temperature,
            reference=reference,
            critic=critic,
            rows=rows,
            autocast=autocast,
        )

    def collect(self, draw: Draw, prompts: int, *, least: int = 1, seed: int = 0) -> list[TokenizedExample]:
        """The examples of a rollout of ``prompts`` prompts, those of all processes on each of them.

        Args:
            draw: Gives prompts, in order; asked again for groups that teach nothing.
            prompts: The number of groups, over all processes.
            least: The least number of examples, over all processes.
            seed: The seed of the sampling; the global random state is left alone.

        Raises:
            UsageError: the rewards distinguish too few completions.
        """
        kept: dict[int, Group] = {}
        found = seen = 0
        with torch.no_grad(), _seeded(seed):
            for _ in range(TRIES):
                drawn = draw(prompts - found)
                kept |= self._kept(drawn, seed)
                # Processes ask for more together: how many are missing is a matter of all of them.
                seen += prompts - found
                found = sum(self.gather([len(kept)]))
                if found == prompts:
                    break
        # A few may be missing after so many tries: the rollout is then a little smaller.
        self.record({"groups/kept": torch.tensor([found / seen])})
        examples = self.process(kept, frozen=False) if found else []
        if len(examples) < least:
            raise UsageError(_NOTHING.format(seen))
        return examples

    def evaluate(self, prompts: Prompts, seed: int) -> list[TokenizedExample]:
        """The examples that prompts yield, those of all processes on each of them.

        There is no second draw, and no trace in the controller.

        Args:
            prompts: This process's share of the prompts.
            seed: The seed of the sampling.
        """
        with torch.no_grad(), _seeded(seed):
            kept = self._kept(prompts, seed)
        return self.process(kept, frozen=True) if sum(self.gather([len(kept)])) else []

    def _kept(self, prompts: Prompts, seed: int) -> dict[int, Group]:
        """The groups of prompts from which something can be learned, by the places of the prompts."""
        if not prompts:
            return {}
        places, examples = zip(*prompts, strict=True)
        groups = zip(places, self.roll_out(examples, places, seed), strict=True)
        return {place: group for place, group in groups if self.processor.keep_group(group)}

    # ---- the stages, in order ------------------------------------------------------------------------------------

    def roll_out(self, prompts: Sequence[TokenizedExample], places: Sequence[int], seed: int) -> list[Group]:
        """Sample and reward ``settings.n`` completions for each prompt.

        Args:
            prompts: The prompts.
            places: A number for each prompt, on which its completions depend.
            seed: The seed of the sampling.
        """
        return self.add_rewards(prompts, self.sample(prompts, places, seed))

    def sample(self, prompts: Sequence[TokenizedExample], places: Sequence[int], seed: int) -> list[list[Sample]]:
        """Stage 1: completions of every prompt, an equal share from each sampler, those of one sampler together."""
        ids = [prompt.prompt for prompt in prompts]
        with self.autocast(), self._timed("generate"):
            drawn = [
                self._draw(sampler, ids, SampleKeys(seed, places, first=number * self.per_sampler))
                for number, sampler in enumerate(self.processor.samplers)
            ]
        return [[sample for part in parts for sample in part] for parts in zip(*drawn, strict=True)]

    def add_rewards(self, prompts: Sequence[TokenizedExample], samples: Sequence[list[Sample]]) -> list[Group]:
        """Stage 2: a reward for every completion. All go to the reward at once, in the order of the prompts."""
        n = self.settings.n
        flat = [sample for group in samples for sample in group]
        repeated = [prompt.source for prompt in prompts for _ in range(n)]
        numbers = [i for i in range(len(prompts)) for _ in range(n)]
        columns = columns_of(repeated, flat, numbers, self.settings.max_new_tokens)
        with self._timed("reward"):
            rewards, parts = self.reward([source.prompt for source in repeated], [s.text for s in flat], columns)
        groups = [
            Group(prompt, group, rewards[i * n : (i + 1) * n], parts=_slices(parts, i * n, (i + 1) * n, len(flat)))
            for i, (prompt, group) in enumerate(zip(prompts, samples, strict=True))
        ]
        self.record(completion_metrics(groups, parts))
        return groups

    def score(self, groups: list[Group]) -> list[Group]:
        """Stage 3: the per-token values that the processor reads, under policy, reference and critic."""
        with self._timed("score"):
            return self.scorer.score(groups, self.processor.needs) if self.processor.needs else groups

    def process(self, kept: Mapping[int, Group], *, frozen: bool) -> list[TokenizedExample]:
        """Stages 3 to 5: score the groups, and let the processor make examples of those of all processes.

        Args:
            kept: Sampled and rewarded groups of this process, by the places of their prompts.
            frozen: Whether this is an evaluation, of which the coefficient of the KL learns nothing.
        """
        own = self.score(list(kept.values()))
        self._compare_generator(own)
        everyone = sorted(self.gather(list(zip(kept, own, strict=True))), key=lambda one: one[0])
        rollout = Rollout([group for _, group in everyone], self.settings.max_new_tokens, self.controller.coefficient)
        # Stages 4 and 5: advantages for every completion, or a selection among them, as training examples.
        examples = self.processor(rollout)
        self.record(critic_metrics(examples))
        self._follow_kl(rollout, frozen=frozen)
        return examples

    # ---- who samples ---------------------------------------------------------------------------------------------

    @property
    def per_sampler(self) -> int:
        """Completions of a prompt that each sampler gives."""
        return self.settings.n // len(self.processor.samplers)

    def _draw(self, sampler: str, prompts: list[np.ndarray], keys: SampleKeys) -> list[list[Sample]]:
        share = replace(self.settings, n=self.per_sampler)
        if sampler == REFERENCE:
            with self.reference.activated(self.policy) as reference:
                return self.generator.generate(reference, prompts, share, keys=keys)
        if sampler == MIXTURE:
            mixture = Mixture(self._reference_logits, self.processor.mixture)
            return self.generator.generate(self.policy, prompts, share, mixture=mixture, keys=keys)
        return self.generator.generate(self.policy, prompts, share, keys=keys)

    def _reference_logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Of the next token. The whole sequence is read again: the reference keeps no cache of its own."""
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        with self.reference.activated(self.policy) as reference:
            return reference(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False
            ).logits[:, -1]

    # ---- what is logged ------------------------------------------------------------------------------------------

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        """Log how long a part of a rollout takes, in seconds."""
        began = time.perf_counter()
        yield
        self.record({f"seconds/{what}": torch.tensor([time.perf_counter() - began])})

    def _compare_generator(self, groups: list[Group]) -> None:
        """Log how far the generator's own log-probs are from the scorer's.

        All of the policy's samples are compared where they have been scored; otherwise those of the first prompt are.
        """
        if self.processor.samplers[0] != POLICY or not groups:
            return
        if not self.processor.needs:
            first = replace(groups[0], samples=groups[0].samples[: self.per_sampler])
            groups = self.scorer.score([first], frozenset({"old_logps"}))
        self.record(generator_gap(groups, self.per_sampler))

    def _follow_kl(self, rollout: Rollout, *, frozen: bool) -> None:
        """Log what the scored tokens show, and let the controller see the KL."""
        needs, mask = self.processor.needs, rollout.mask
        if not needs:
            return
        values = {"entropy": -rollout.tokens("old_logps")[mask]}
        if "ref_logps" in needs:
            kl = torch.where(mask, self.processor.kl(rollout), 0.0).sum(dim=1)
            values["kl"] = kl
            if self.processor.kl_penalty is not None:
                values["kl_coef"] = torch.tensor([rollout.kl_coef])
            if not frozen:
                self.controller.update(float(kl.mean()), len(kl))
        self.record(values)


def _slices(parts: Mapping[str, list[float]], start: int, end: int, completions: int) -> dict[str, list[float]]:
    """What each reward function gave to some of the completions; a detail may be of something else."""
    return {name: values[start:end] for name, values in parts.items() if len(values) == completions}


_NOTHING = (
    "the rewards of {} prompts distinguish no completions, so nothing can be learned from them: check the reward, "
    "raise generation n or temperature."
)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
