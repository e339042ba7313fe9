"""From prompts to training examples: sample, reward, score, and let the source make examples of it."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from prefopt.core.errors import UsageError
from prefopt.data import TokenizedExample, collate
from prefopt.models import Critic, Reference
from prefopt.rewards.reward import Reward
from prefopt.rollouts.credit import Shaped
from prefopt.rollouts.generator import GenerationSettings, Generator, Mixture
from prefopt.rollouts.kl_controller import KLController
from prefopt.rollouts.rollout import MIXTURE, POLICY, REFERENCE, Group, Rollout, Source, example_of
from prefopt.rollouts.sample import Sample, columns_of
from prefopt.scoring import score, score_values

TRIES = 10
"""How many times the prompts of a rollout are drawn again for groups that teach nothing."""

Draw = Callable[[int], list[TokenizedExample]]
"""From a number to that many prompts, the next ones in order."""


class RolloutMaker:
    """Makes rollouts with the newest weights.

    Args:
        policy: gives the model that is trained.
        source: makes examples of what was sampled.
        generator: samples completions.
        settings: how.
        reward: scores them.
        pad_token_id: for padding.
        reference: the reference model, where the source or one of its samplers needs it.
        critic: where the source reads values.
        rows: completions per forward pass of scoring.
        gather: from a tensor of this process to those of all, concatenated.
        autocast: gives the context of mixed precision.
        record: receives values to log, one per completion or rollout.
    """

    def __init__(
        self,
        policy: Callable[[], nn.Module],
        source: Source,
        *,
        generator: Generator,
        settings: GenerationSettings,
        reward: Reward,
        pad_token_id: int,
        reference: Reference | None = None,
        critic: Critic | None = None,
        rows: int = 16,
        gather: Callable[[Tensor], Tensor] = lambda own: own,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        record: Callable[[dict[str, Tensor]], None] = lambda values: None,
    ) -> None:
        self.policy, self.source, self.generator = policy, source, generator
        self.settings, self.reward, self.pad_token_id = settings, reward, pad_token_id
        self.reference, self.critic, self.rows = reference, critic, rows
        self.gather, self.autocast, self.record = gather, autocast, record
        self.controller = KLController(source)

    def make(self, draw: Draw, prompts: int, *, least: int = 1, seed: int = 0) -> list[TokenizedExample]:
        """The examples of a rollout of ``prompts`` prompts.

        Args:
            draw: gives prompts, in order; asked again for groups that teach nothing.
            prompts: how many groups.
            least: how many examples there must be.
            seed: of the sampling; the global random state is left alone.

        Raises:
            UsageError: the rewards distinguish too few completions.
        """
        kept: list[Group] = []
        seen = 0
        with torch.no_grad(), _seeded(seed):
            for _ in range(TRIES):
                groups = self.roll_out(draw(prompts - len(kept)))
                seen += len(groups)
                kept += [group for group in groups if self.source.keeps(group)]
                if len(kept) == prompts:
                    break
        # A few may be missing after so many tries: the rollout is then a little smaller.
        self.record({"groups/kept": torch.tensor([len(kept) / seen])})
        self._check_everyone(len(kept), 1, seen)
        examples = self._examples(kept, frozen=False)
        self._check_everyone(len(examples), least, seen)
        return examples

    def _check_everyone(self, own: int, least: int, seen: int) -> None:
        """Stop all processes together where one has too little: the others would wait for it for ever."""
        if int(self.gather(torch.tensor([own])).min()) < least:
            raise UsageError(_NOTHING.format(seen))

    def evaluate(self, prompts: Sequence[TokenizedExample], seed: int) -> list[TokenizedExample]:
        """The examples that prompts yield, without a second draw, and without a trace in the controller."""
        with torch.no_grad(), _seeded(seed):
            groups = [group for group in self.roll_out(prompts) if self.source.keeps(group)]
        return self._examples(groups, frozen=True) if groups else []

    def _examples(self, groups: list[Group], *, frozen: bool) -> list[TokenizedExample]:
        with torch.no_grad(), self.autocast(), self._timed("score"):
            groups = self._scored(groups)
        # In an evaluation processes take turns of their own, and one may have nothing to give.
        gather = _alone if frozen else self.gather
        rollout = Rollout(groups, self.settings.max_new_tokens, self.controller.coefficient, gather)
        examples = self.source(rollout)
        self._compare_generator(groups)
        self._watch(rollout, frozen=frozen)
        return examples

    def roll_out(self, prompts: Sequence[TokenizedExample]) -> list[Group]:
        """Sample and reward ``settings.n`` completions for each prompt."""
        share = replace(self.settings, n=self.settings.n // len(self.source.samplers))
        ids = [prompt.prompt for prompt in prompts]
        with self.autocast(), self._timed("generate"):
            drawn = [self._draw(sampler, ids, share) for sampler in self.source.samplers]
        samples = [[sample for part in parts for sample in part] for parts in zip(*drawn, strict=True)]
        flat = [sample for group in samples for sample in group]
        repeated = [prompt.source for prompt in prompts for _ in range(self.settings.n)]
        numbers = [i for i in range(len(prompts)) for _ in range(self.settings.n)]
        columns = columns_of(repeated, flat, numbers, self.settings.max_new_tokens)
        with self._timed("reward"):
            rewards, parts = self.reward([source.prompt for source in repeated], [s.text for s in flat], columns)
        n = self.settings.n
        groups = [
            Group(prompt, group, rewards[i * n : (i + 1) * n])
            for i, (prompt, group) in enumerate(zip(prompts, samples, strict=True))
        ]
        self._record(flat, parts, groups)
        return groups

    def _draw(self, sampler: str, prompts: list[np.ndarray], share: GenerationSettings) -> list[list[Sample]]:
        policy = self.policy()
        if sampler == REFERENCE:
            with self.reference.activated(policy) as reference:
                return self.generator.generate(reference, prompts, share)
        if sampler == MIXTURE:
            mixture = Mixture(self._reference_logits, self.source.mixture)
            return self.generator.generate(policy, prompts, share, mixture=mixture)
        return self.generator.generate(policy, prompts, share)

    def _reference_logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Of the next token. The whole sequence is read again: the reference keeps no cache of its own."""
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        with self.reference.activated(self.policy()) as reference:
            return reference(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False
            ).logits[:, -1]

    # ---- scoring -----------------------------------------------------------------------------------------------

    def _scored(self, groups: list[Group]) -> list[Group]:
        """The groups with the per-token values that the source reads."""
        return self._with_tokens(groups, self.source.needs) if self.source.needs else groups

    def _with_tokens(self, groups: list[Group], needs: frozenset[str]) -> list[Group]:
        flat = [example_of(group.prompt, sample) for group in groups for sample in group.samples]
        # Completions of a prompt go together, for they can share it; then prompts of one length waste no padding.
        order = sorted(range(len(flat)), key=lambda i: (len(flat[i].prompt), flat[i].id))
        tokens: list[dict[str, np.ndarray]] = [{} for _ in flat]
        for start in range(0, len(order), self.rows):
            chosen = order[start : start + self.rows]
            values = self._token_values([flat[i] for i in chosen], needs)
            ends = np.cumsum([len(flat[i].completions[0]) for i in chosen])
            for name, value in values.items():
                for i, own in zip(chosen, np.split(value.float().cpu().numpy(), ends[:-1]), strict=True):
                    tokens[i][name] = own
        sizes = np.cumsum([0, *(len(group.samples) for group in groups)])
        return [replace(group, tokens=tokens[a:b]) for group, a, b in zip(groups, sizes[:-1], sizes[1:], strict=True)]

    def _token_values(self, examples: list[TokenizedExample], needs: frozenset[str]) -> dict[str, Tensor]:
        policy = self.policy()
        was_training = policy.training
        policy.eval()
        device = next(policy.parameters()).device
        padded = collate(examples, pad_token_id=self.pad_token_id).to(device).rows
        # At temperature 0 the generator's log-probs are those of the logits as they are.
        temperature = self.settings.temperature or 1.0
        joint = self.critic is not None and not self.critic.separate
        head = self.critic.head if joint and "values" in needs else None
        scored = score(policy, padded, temperature=temperature, value_head=head)
        values = {"old_logps": scored["logps"]}
        if "ref_logps" in needs:
            with self.reference.activated(policy) as reference:
                values["ref_logps"] = score(reference, padded, temperature=temperature)["logps"]
        if "values" in needs and joint:
            values["values"] = scored["values"]
        elif "values" in needs:
            with self.critic.activated(policy) as model:
                values["values"] = score_values(model, padded, self.critic.head)
        policy.train(was_training)
        return values

    # ---- what is logged ----------------------------------------------------------------------------------------

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        """Log how long a part of a rollout takes, in seconds."""
        began = time.perf_counter()
        yield
        self.record({f"seconds/{what}": torch.tensor([time.perf_counter() - began])})

    def _record(self, flat: list[Sample], parts: Mapping[str, list[float]], groups: list[Group]) -> None:
        values = {
            "reward": [reward for group in groups for reward in group.rewards],
            "reward/best": [max(group.rewards) for group in groups],
            "completions/length": [float(len(sample.ids)) for sample in flat],
            "completions/ended": [float(sample.ended) for sample in flat],
            "completions/repetition": [repeated_trigrams(sample.ids) for sample in flat],
        }
        if len(parts) > 1:
            values |= {f"reward/{name}": part for name, part in parts.items()}
        self.record({name: torch.tensor(value) for name, value in values.items()})

    def _compare_generator(self, groups: list[Group]) -> None:
        """Log how far the generator's own log-probs are from the scorer's, in nats at a token.

        All of the policy's samples are compared where they have been scored; otherwise those of the first prompt are.
        """
        if self.source.samplers[0] != POLICY:
            return
        share = self.settings.n // len(self.source.samplers)
        if "old_logps" not in self.source.needs:
            first = groups[0]
            with torch.no_grad(), self.autocast():
                groups = self._with_tokens([replace(first, samples=first.samples[:share])], frozenset({"old_logps"}))
        own = [sample for group in groups for sample in group.samples[:share]]
        scored = [tokens["old_logps"] for group in groups for tokens in group.tokens[:share]]
        if all(sample.logps is not None for sample in own):
            gaps = np.concatenate([sample.logps for sample in own]) - np.concatenate(scored)
            self.record({"generator/gap": torch.from_numpy(np.abs(gaps))})

    def _watch(self, rollout: Rollout, *, frozen: bool) -> None:
        """Log what the scored tokens show, and let the controller see the KL."""
        needs, mask = self.source.needs, rollout.mask
        if "old_logps" not in needs:
            return
        old = rollout.tokens("old_logps")
        values = {"entropy": -old[mask]}
        if "ref_logps" in needs:
            shaped = isinstance(self.source, Shaped)
            at_tokens = self.source.divergence(rollout) if shaped else old - rollout.tokens("ref_logps")
            kl = torch.where(mask, at_tokens, 0.0).sum(dim=1)
            values["kl"] = kl
            if shaped:
                values["kl_coef"] = torch.tensor([rollout.kl_coef])
            if not frozen:
                everyone = self.gather(kl)
                self.controller.update(float(everyone.mean()), len(everyone))
        self.record(values)


def _alone(own: Tensor) -> Tensor:
    return own


_NOTHING = (
    "the rewards of {} prompts distinguish no completions, so nothing can be learned from them: check the reward, "
    "raise generation n or temperature."
)


def repeated_trigrams(ids: np.ndarray) -> float:
    """The share of a completion's token trigrams that have stood in it before, 0 to 1."""
    trigrams = list(zip(ids[:-2].tolist(), ids[1:-1].tolist(), ids[2:].tolist(), strict=True))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
