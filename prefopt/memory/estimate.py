"""What a run will need, before it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from prefopt.core.arguments import takes
from prefopt.memory import optimizers
from prefopt.memory.advice import Advice
from prefopt.memory.dry_run import DryRun
from prefopt.memory.planned_run import Run
from prefopt.memory.roles import Roles

GB = 2**30
CARDS = (8, 12, 16, 24)
"""Sizes of graphics cards, in GiB."""
RESERVE, SLACK = 0.75 * GB, 0.03
"""What tensors of a run cannot have of a card: the CUDA context with its libraries (and a desktop), and the share that
the allocator loses between blocks. An assumption, no measurement."""


@dataclass(frozen=True)
class Plan:
    """Bytes of tensors that a run needs. All that is not in ``moments`` is there throughout.

    Attributes:
        weights: of the policy's base; quantized where it is.
        adapter: of the policy.
        reference: of a reference with weights of its own, or an adapter of its own.
        critic: of the critic's own weights.
        reward: of reward models' own weights.
        gradients: of all that is trained, a part of the moments that have a backward pass.
        gradients_of_policy: of them, the policy's.
        optimizer: its states.
        moments: what comes on top, one at a time, by name: ``reference`` (with a cache ``reference cache``, before the
            first step), ``training``, ``critic``, ``optimizer step``, ``sampling``, ``rollout``, ``reward``.
        cache: keys and values at the end of sampling, a part of ``moments["sampling"]``.
        kept: activations at the end of the forward pass, a part of ``moments["training"]``.
        tokens: of the micro-batch, as the layers see it.
        run: what is planned.
        notes: lines to show to the user.
    """

    weights: int
    adapter: int
    reference: int
    critic: int
    reward: int
    gradients: int
    gradients_of_policy: int
    optimizer: int
    moments: Mapping[str, int]
    cache: int
    kept: int
    tokens: int
    run: Run = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, int]:
        """What is there throughout, by name."""
        names = "weights", "adapter", "reference", "critic", "reward", "optimizer"
        return {name: getattr(self, name) for name in names}

    @property
    def standing(self) -> int:
        """What is there throughout."""
        return sum(self.parts.values())

    @property
    def moment(self) -> str:
        """The moment of the peak."""
        return max(self.moments, key=lambda name: self.moments[name])

    @property
    def total(self) -> int:
        """The most at any time."""
        return self.standing + self.moments[self.moment]

    def fits(self, gb: float) -> bool:
        """Whether the run fits a card of that many GiB, of which `RESERVE` and `SLACK` are not for it."""
        return self.within(self.total, gb)

    @staticmethod
    def within(total: float, gb: float) -> bool:
        """Whether so many bytes of tensors fit a card of that many GiB."""
        return total <= (gb * GB - RESERVE) * (1 - SLACK)

    def advice(self, gb: float) -> dict[str, Any] | None:
        """What to change so that the run fits a card of that many GiB, as names and values of flags: empty where
        nothing must be, None where nothing that is known here is enough.

        What leaves the training as it is comes first; a change that hardly lowers the peak at its turn is left out.
        """
        fits, flags = self._advice.fitting(gb)
        return flags if fits else None

    @cached_property
    def _advice(self) -> Advice:
        return Advice(self, plan_run)


@takes(Run)
def plan(run: Run) -> Plan:
    """What a run will need before it starts, in bytes of tensors.

    Only the model's config is read, and the data where it is given; without data, lengths come from
    ``data["max_length"]`` and ``prompt_length``. The passes of the run's own layers, adapters, attention and
    vocabulary head are gone through on tensors that have a shape and no memory. The model may also be a config.

    Raises:
        UsageError, DataError, ModelError: What cannot work, in one line.

    Example:
        >>> prefopt.plan("my-model", "dpo", adapter="qlora", data={"max_length": 4096}).fits(16)
    """
    return plan_run(run)


def plan_run(run: Run) -> Plan:
    """The plan of a run."""
    return _Planner(run).plan()


class _Planner:
    """Puts the parts of a plan together."""

    def __init__(self, run: Run) -> None:
        self.run, self.needs = run, run.resolved.objective.needs
        self.segments = run.segments(run.micro_batch)
        self.roles = Roles(run)

    @cached_property
    def policy(self) -> DryRun:
        return self.roles.policy

    def plan(self) -> Plan:
        sizes, run = self.roles.sizes(), self.run
        gradients = self.roles.gradients
        moments: dict[str, int] = {}
        if run.resolved.needs_reference and (self.needs.reference or not run.resolved.online):
            if run.reference_cache is not None:
                moments["reference cache"] = self.roles.cache_pass()
            else:
                moments["reference"] = self.roles.reference_pass(self.segments)
        if self.needs.observes:
            moments["observation"] = self.policy.scoring(self.segments)
        training = self.policy.training(
            self.segments,
            checkpointing=run.checkpointing,
            gradients=run.accumulation > 1,
            statistics=self.needs.statistics,
        )
        there = gradients.policy if run.accumulation > 1 else 0
        moments["training"] = there + training.peak
        if gradients.critic:
            moments["critic"] = gradients.policy + gradients.critic + self.roles.critic_pass(self.segments)
        shapes = self.roles.shapes
        moments["optimizer step"] = (
            gradients.policy + gradients.critic + optimizers.step_bytes(run.optimizer, shapes, run.device)
        )
        cache = 0
        if run.resolved.online:
            cache, online = self.roles.online_moments()
            moments |= online
        return Plan(
            weights=sizes.weights,
            adapter=sizes.adapter,
            reference=sizes.reference,
            critic=sizes.critic,
            reward=sizes.reward,
            gradients=gradients.policy + gradients.critic,
            gradients_of_policy=gradients.policy,
            optimizer=optimizers.state_bytes(run.optimizer, shapes),
            moments=moments,
            cache=cache,
            kept=training.kept,
            tokens=self.policy.tokens(self.segments),
            run=run,
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        run = self.run
        notes = [*self.roles.notes, run.length_note]
        if not optimizers.known(run.optimizer):
            notes.append(f"it is not known what {run.optimizer} keeps: it is counted as AdamW in 32 bit")
        if run.optimizer.startswith("paged"):
            notes.append("the optimizer's states are paged: where a card is full, they make room in the main memory")
        if run.device == "cpu":
            notes.append("planned for training on the CPU, in float32")
        return tuple(notes)
