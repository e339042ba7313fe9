"""The models of a run: whose weights are there, what of them is trained, and what their passes hold."""

import copy
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from prefopt.memory import optimizers
from prefopt.memory.dry_run import DryRun
from prefopt.memory.planned_run import Run
from prefopt.memory.segments import Segments
from prefopt.rewards.reward_model import ROWS, TOKENS
from prefopt.rollouts import MIXTURE

Shapes = list[tuple[int, ...]]


class Sizes(NamedTuple):
    """Bytes of weights, by role."""

    weights: int
    adapter: int
    reference: int
    critic: int
    reward: int


class Gradients(NamedTuple):
    """Bytes of gradients, by role."""

    policy: int
    critic: int


class Roles:
    """Policy, reference, critic and reward models of a run.

    Attributes:
        notes: lines to show to the user.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.notes: list[str] = []

    @cached_property
    def policy(self) -> DryRun:
        run = self.run
        return DryRun(
            copy.deepcopy(run.config),
            lora=run.lora_config,
            quantized=run.quantized,
            dtype=run.weight_dtype,
            mixed=run.mixed,
            rewards=run.resolved.objective.needs.rewards,
            share_prompts=run.share_prompts,
        )

    # ---- weights -----------------------------------------------------------------------------------------------------

    def sizes(self) -> Sizes:
        return Sizes(self.policy.base_bytes, self.policy.adapter_bytes, self._reference, self._critic, self._reward)

    @property
    def gradients(self) -> Gradients:
        return Gradients(self.policy.trained_bytes, 4 * sum(map(_numbers, self._critic_shapes)))

    @property
    def shapes(self) -> Shapes:
        """Of all trained weights."""
        return [*self.policy.trained, *self._critic_shapes]

    @cached_property
    def _given_reference(self) -> DryRun | None:
        """A reference of its own that was asked for, other than an adapter on the policy's base."""
        run, given = self.run, self.run.reference
        if given is None or self._shares(given):
            return None
        origin = run.origin_of(given)
        dtype = run.frozen_dtype if run.adapter is not None or origin.lora is not None else torch.float32
        return DryRun(
            copy.deepcopy(origin.config),
            lora=origin.lora,
            quantized=run.settings.quantize,
            dtype=dtype,
            mixed=run.mixed,
            share_prompts=run.share_prompts,
        )

    def _shares(self, name: object) -> bool:
        """Whether what is named is an adapter on the policy's base."""
        if self.run.lora_config is None or not isinstance(name, (str, Path)):
            return False
        origin = self.run.origin_of(name)
        return origin.lora is not None and origin.base == self.run.origin.base

    @cached_property
    def _reference(self) -> int:
        run = self.run
        if not run.resolved.needs_reference:
            return 0
        if self._given_reference is not None:
            return 0 if run.reference_cache is not None else self._given_bytes
        if run.lora_config is None and run.reference_cache is not None:
            return 0
        if run.lora_config is None:
            self.notes.append("the reference is a frozen copy of the weights: an adapter would need none")
            return self.policy.base_bytes
        own = run.arrives_with_adapter or run.resolved.schedule.renew_reference or run.reference is not None
        return self.policy.adapter_bytes if own else 0

    @property
    def _given_bytes(self) -> int:
        given = self._given_reference
        return 0 if given is None else given.base_bytes + given.adapter_bytes

    @property
    def _critic_kind(self) -> str | None:
        settings = self.run.resolved.critic
        if settings is None or settings.critic != "auto":
            return None if settings is None else settings.critic
        return "model" if self.run.lora_config is None else "adapter"

    @cached_property
    def _critic_shapes(self) -> Shapes:
        kind = self._critic_kind
        if kind is None:
            return []
        head: Shapes = [(1, self.policy.hidden), (1,)]
        if kind == "head":
            return head
        # The vocabulary head of a model says nothing about values.
        return head + (self.policy.trained if kind == "adapter" else self.policy.trained_below_head)

    @cached_property
    def _critic(self) -> int:
        head = 4 * (self.policy.hidden + 1)
        sizes = {None: 0, "head": head, "adapter": head + self.policy.adapter_bytes}
        # A model of its own copies what it trains; what is frozen, and the vocabulary head, are the policy's.
        return sizes.get(self._critic_kind, 4 * sum(map(_numbers, self._critic_shapes)))

    @cached_property
    def _reward_runs(self) -> list[DryRun | None]:
        """The reward models that have a base of their own; None for those on the policy's."""
        return [None if self._shares_reward(name) else self._reward_run(name) for name in self.run.reward_models]

    def _shares_reward(self, name: str) -> bool:
        return self._shares(name) and self.run.origin_of(name).quantized == self.run.quantized

    def _reward_run(self, name: str) -> DryRun:
        origin, dtype = self.run.origin_of(name), self.run.frozen_dtype
        config = copy.deepcopy(origin.config)
        return DryRun(config, lora=origin.lora, quantized=origin.quantized, dtype=dtype, mixed=None, rewards=True)

    @cached_property
    def _reward(self) -> int:
        shared = [self.run.origin_of(name).lora for name, run in self._rewards if run is None]
        whole = sum(run.base_bytes + run.adapter_bytes for _, run in self._rewards if run is not None)
        return whole + sum(self.policy.adapter_like(lora) for lora in shared)

    @property
    def _rewards(self) -> list[tuple[str, DryRun | None]]:
        return list(zip(self.run.reward_models, self._reward_runs, strict=True))

    # ---- passes ------------------------------------------------------------------------------------------------------

    def reference_pass(self, segments: Segments) -> int:
        """Scoring with the reference."""
        if self._given_reference is not None:
            return self._given_reference.scoring(segments, frozen=True)
        return self.policy.scoring(segments, adapter=self._reference > 0, frozen=True)

    def cache_pass(self) -> int:
        """Scoring all rows with the reference before the first step, for a cache; with the weights that it has of its
        own until then, and without the optimizer's states, which are not there yet."""
        segments = self.run.cached_segments
        if self._given_reference is not None:
            scored = self._given_bytes + self._given_reference.scoring(segments, frozen=True)
        else:
            # The first rows are scored by the policy too, which must begin as its reference.
            base = 0 if self.run.lora_config is None else self.reference_pass(segments)
            scored = max(base, self.policy.scoring(segments))
        return max(0, scored - optimizers.state_bytes(self.run.optimizer, self.shapes))

    def critic_pass(self, segments: Segments) -> int:
        """Forward and backward of a critic apart from the policy's; 0 where it is a head on the policy."""
        run = self.run
        if self._critic_kind in (None, "head"):
            return 0
        found = self.policy.training(
            segments, checkpointing=run.checkpointing, gradients=run.accumulation > 1, values=True
        )
        return found.peak

    def online_moments(self) -> tuple[int, dict[str, int]]:
        """Bytes of keys and values at the end of sampling, and the moments of a rollout."""
        run, settings = self.run, self.run.generation_settings
        new, n = settings.max_new_tokens, settings.n
        share = n // len(run.resolved.processor.samplers)
        prompts = min(max(1, settings.batch_size // share), run.rollout)
        cache, peak = self.policy.sampling(prompts, share, run.prompt, new)
        if MIXTURE in run.resolved.processor.samplers:
            # The reference reads the whole sequence for every token, with all of its logits.
            peak += 2 * prompts * share * (run.prompt + new) * self.policy.vocabulary * 2
        moments = {"sampling": peak}
        row = (run.prompt, (new,))
        if run.resolved.processor.needs:
            moments["rollout"] = self.policy.scoring(Segments(((run.prompt, (new,) * n),) * run.micro_batch))
        rows = Segments((row,) * max(1, min(ROWS, TOKENS // (run.prompt + new), run.rollout * n)))
        for _, own in self._rewards:
            scored = self.policy.scoring(rows, values=True) if own is None else own.scoring(rows, frozen=True)
            moments["reward"] = max(moments.get("reward", 0), scored)
        return cache, moments


def _numbers(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
