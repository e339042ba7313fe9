"""Examples of an online run: the policy's own completions, with rewards."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from prefopt.algorithms import Algorithm
from prefopt.core.console import say
from prefopt.core.errors import UsageError
from prefopt.core.loss import Loss
from prefopt.core.objective import Combined, Objective
from prefopt.core.policy_gradient import PolicyGradient
from prefopt.data import DataSettings, Encoder, TokenizedDataset
from prefopt.models import Critic, Reference
from prefopt.models.dropout import turn_off_dropout
from prefopt.rewards.calling import RewardFunction
from prefopt.rewards.names import load_reward
from prefopt.rewards.penalties import SoftOverlongPunishment
from prefopt.rewards.reward import Reward, make_reward
from prefopt.rewards.shared import SharedRewardModel, shares_base
from prefopt.rollouts import (
    EvaluationRollouts,
    GenerationSettings,
    PromptStream,
    RolloutCollector,
    RolloutLoader,
    TransformersGenerator,
)
from prefopt.training.auxiliary import Auxiliary
from prefopt.training.context import TrainingContext
from prefopt.training.critic_trainer import CriticTrainer, critic_start
from prefopt.training.sources import ExampleSource
from prefopt.training.watch import Watch

REFERENCE_FILE = "reference.safetensors"


class RolloutSource(ExampleSource):
    """Samples completions of the prompts of a dataset, rewards them, and makes examples of them.

    The stages (sample → reward → score → advantages → examples) are those of `RolloutCollector`; the loaders hand out
    what it collects in micro-batches, as often as the algorithm's schedule says.

    Args:
        algorithm: The online algorithm.
        policy: The model that is trained, before its first update.
        tokenizer: The policy's tokenizer.
        reference: The reference, where the algorithm needs one.
        reward: Whatever `make_reward` takes.
        generation: Fields of `GenerationSettings`.
        data: The settings by which prompts are encoded.
        trust_remote_code: Run code that comes with a reward model.

    Attributes:
        collector: What samples, once the run is known.
        loader: The rollouts for training, once training begins.
    """

    collector: RolloutCollector

    def __init__(
        self,
        algorithm: Algorithm,
        policy: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        reference: Reference | None,
        reward: Any,
        generation: Mapping[str, Any] | GenerationSettings | None,
        data: DataSettings,
        trust_remote_code: bool = False,
    ) -> None:
        _check_schedule(algorithm)
        # Before anything is copied from the policy.
        _without_dropout(algorithm, policy)
        self.processor, self.schedule, self.reference = algorithm.processor, algorithm.schedule, reference
        self.settings = generation_settings(algorithm, generation)
        self.reward = make_reward(reward, load=lambda name: _reward_model(policy, name, trust_remote_code))
        _check_penalties(algorithm, self.reward)
        self.generator = TransformersGenerator(tokenizer, Encoder(tokenizer, data).stop_ids())
        self.pad_token_id = tokenizer.pad_token_id
        self.critic: Critic | None = None
        self.auxiliary = Auxiliary()
        if algorithm.critic is not None:
            start = critic_start(algorithm, self.reward, policy, tokenizer)
            self.auxiliary = CriticTrainer(algorithm.critic, policy, start)
            self.critic = self.auxiliary.critic
        self.objective = self.auxiliary.joined(_with_limit(algorithm.objective, self.settings))
        # Completions that are learned from as they are do not care how they were sampled.
        self.temperature = self.settings.temperature if algorithm.uses_ratio else 1.0
        self.initial_weights = InitialWeights(policy) if self.schedule.restart else None
        self.loader: RolloutLoader | None = None
        self._moved: list[Tensor] = []

    def callbacks(self, given: Sequence[TrainerCallback | type]) -> list[TrainerCallback]:
        """A watch for reward hacking that only warns, where the user has given none."""
        # As transformers takes them, a callback may be a class.
        watched = any(issubclass(one if isinstance(one, type) else type(one), Watch) for one in given)
        return [] if watched else [Watch()]

    def attach(self, context: TrainingContext) -> None:
        super().attach(context)
        self.collector = RolloutCollector(
            context.policy,
            self.processor,
            generator=self.generator,
            settings=self.settings,
            reward=self.reward,
            pad_token_id=self.pad_token_id,
            reference=self.reference,
            critic=self.critic,
            rows=context.args.per_device_train_batch_size * self.settings.n,
            gather=context.gather,
            autocast=context.accelerator.autocast,
            record=context.metrics.add,
        )

    # ---- micro-batches -------------------------------------------------------------------------------------------

    def train_batches(self, dataset: TokenizedDataset, batch_size: int) -> RolloutLoader:
        """Rollouts of the newest weights, kept so that a checkpoint can hold their state."""
        args, seed = self.context.args, self.context.data_seed
        self.loader = RolloutLoader(
            self.collector,
            PromptStream(dataset, seed, world=args.world_size, rank=args.process_index),
            self.schedule,
            micro_batch=batch_size,
            accumulation=args.gradient_accumulation_steps,
            seed=seed,
            renew_reference=self._renew_reference,
            restart=self._restart,
        )
        self.loader.steps = _steps(args, len(self.loader))
        return self.loader

    def eval_batches(self, dataset: TokenizedDataset, batch_size: int) -> EvaluationRollouts:
        """One rollout of all prompts, sampled with a fixed seed."""
        world, rank = self.context.args.world_size, self.context.args.process_index
        return EvaluationRollouts(
            self.collector, dataset, batch_size, seed=self.context.data_seed, world=world, rank=rank
        )

    def _renew_reference(self) -> None:
        self.reference.renew(self.context.policy)

    def _restart(self) -> None:
        self.initial_weights.restore(self.context.policy, self.context.optimizer)

    # ---- steps ---------------------------------------------------------------------------------------------------

    def metrics(self, loss: Loss) -> Mapping[str, Tensor]:
        """``kl`` is that of the reward where there is one, logged with the rollout; the loss's own is ``kl/loss``."""
        found = self.auxiliary.metrics(loss.metrics)
        if "kl" in found and "ref_logps" in self.processor.needs:
            found["kl/loss"] = found.pop("kl")
        return found

    def observe(self, metrics: Mapping[str, Tensor]) -> None:
        """Add up how far the policy has moved from the one that sampled, where a limit is set."""
        if self.schedule.target_kl == 0:
            return
        values = metrics["policy/approx_kl"].double()
        self._moved.append(torch.stack([values.sum(), torch.ones_like(values).sum()]))

    def end_of_step(self) -> None:
        """Leave the rollout if the policy has moved too far from the one that sampled it."""
        super().end_of_step()
        if not self._moved:
            return
        total, tokens = self.context.accelerator.reduce(torch.stack(self._moved).sum(dim=0), "sum").tolist()
        self._moved = []
        if total / max(tokens, 1.0) > self.schedule.target_kl:
            self.loader.leave()

    def epoch(self, counted: float) -> float:
        """Passes over the prompts: after a resume transformers counts from the beginning of the epoch again."""
        return self.loader.given / len(self.loader)

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def save(self, folder: Path, *, main: bool) -> None:
        """Write the rollout and the place in it, the critic and the renewed reference, on one process."""
        super().save(folder, main=main)
        if main and self.loader is not None:
            self.loader.save(folder)
        if main and self.schedule.renew_reference:
            save_file(self.reference.state(self.context.policy), folder / REFERENCE_FILE)

    def load(self, folder: Path) -> None:
        super().load(folder)
        if self.loader is not None:
            self.loader.load(folder)
        if self.schedule.renew_reference and (folder / REFERENCE_FILE).is_file():
            self.reference.load(self.context.policy, load_file(folder / REFERENCE_FILE))


class InitialWeights:
    """The weights that are trained as they were at the start, to begin every round from.

    They are kept on the CPU. A resumed run finds them as the first one did: in the model that it is given.
    """

    def __init__(self, policy: nn.Module) -> None:
        self.weights = {
            name: weight.detach().to("cpu", copy=True)
            for name, weight in policy.named_parameters()
            if weight.requires_grad
        }

    @torch.no_grad()
    def restore(self, policy: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Set the policy back, and let the optimizer forget what it knew of the weights that were left."""
        for name, weight in policy.named_parameters():
            if name in self.weights:
                weight.copy_(self.weights[name])
        optimizer.state.clear()


def _reward_model(policy: nn.Module, name: str, trust_remote_code: bool) -> RewardFunction:
    """A reward model by name; one that is an adapter on the policy's base shares that base."""
    if shares_base(policy, name):
        say(f"reward {name}: its adapter sits on the policy's own base.")
        return SharedRewardModel(policy, name)
    return load_reward(name, trust_remote_code=trust_remote_code)


def _steps(args: TrainingArguments, micro_batches: int) -> int:
    """The number of optimizer steps of a run, as transformers counts them."""
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(args.num_train_epochs * (micro_batches // args.gradient_accumulation_steps))


def _check_schedule(algorithm: Algorithm) -> None:
    """Refuse what would have no effect."""
    name, schedule = algorithm.name, algorithm.schedule
    if schedule.target_kl > 0 and not algorithm.uses_ratio:
        raise UsageError(f"{name} does not measure how far it is from the policy that sampled: leave target_kl out.")
    if schedule.renew_reference and not algorithm.needs_reference:
        raise UsageError(f"{name} uses no reference model: leave renew_reference out.")
    if schedule.restart and algorithm.uses_ratio:
        raise UsageError(f"{name} learns from samples of the very policy that it improves: leave restart out.")
    parts = algorithm.objective.members if isinstance(algorithm.objective, Combined) else ((1.0, algorithm.objective),)
    gradients = [one for _, one in parts if isinstance(one, PolicyGradient)]
    if any(one.beta > 0 and one.kl == "k1" and not one.kl_ratio for one in gradients):
        raise UsageError(f"{name}: kl='k1' in the loss has an expected gradient of 0: choose k2 or k3.")
    if any(one.beta > 0 and one.kl == "k2" and one.kl_ratio for one in gradients):
        raise UsageError(f"{name}: kl='k2' times the ratio has not the gradient of a KL: leave kl_ratio out.")
    if not all(one.corrects for one in gradients):
        for key in ("passes", "minibatches"):
            if (value := getattr(schedule, key)) > 1:
                raise UsageError(
                    f"{name} has no ratio to the policy that sampled, so only the first step on a rollout would be "
                    f"right: leave {key}={value} out, or choose ppo, grpo or reinforce_pp."
                )


def _check_penalties(algorithm: Algorithm, reward: Reward) -> None:
    """Refuse to punish the same completions twice."""
    overlong = getattr(algorithm.processor, "overlong", 0.0)
    if overlong > 0 and any(isinstance(one, SoftOverlongPunishment) for one, _ in reward.functions.values()):
        raise UsageError(
            f"{algorithm.name} punishes overlong completions itself (overlong={overlong:g}): leave "
            "soft_overlong_punishment out of the reward, or set overlong=0."
        )


def _without_dropout(algorithm: Algorithm, policy: nn.Module) -> None:
    """The policy that is trained must be the one that sampled, or the ratio is not 1 before the first update."""
    rates = sorted(set(turn_off_dropout(policy)))
    if rates:
        listed = ", ".join(f"{rate:g}" for rate in rates)
        why = "the policy that learns must be the one that sampled"
        say(f"{algorithm.name}: dropout is off (it was {listed}): {why}.")


def _with_limit(objective: Objective, settings: GenerationSettings) -> Objective:
    """Dr. GRPO's constant is the limit of generation, where no other one was chosen."""
    if getattr(objective, "max_length", 0) is None:
        return replace(objective, max_length=settings.max_new_tokens)
    return objective


def generation_settings(
    algorithm: Algorithm, given: Mapping[str, Any] | GenerationSettings | None
) -> GenerationSettings:
    """How an algorithm samples: the user's settings over its own defaults.

    Raises:
        UsageError: settings under which its loss would be another one.
    """
    if not isinstance(given, GenerationSettings):
        given = {**algorithm.generation, **(given or {})}
    settings = GenerationSettings.of(given)
    name, samplers = algorithm.name, len(algorithm.processor.samplers)
    if settings.min_new_tokens > settings.max_new_tokens:
        raise UsageError(
            f"generation: min_new_tokens={settings.min_new_tokens} is more than max_new_tokens="
            f"{settings.max_new_tokens}."
        )
    if settings.n % samplers:
        raise UsageError(f"{name} samples from {samplers} policies: generation n={settings.n} must be even.")
    if algorithm.uses_ratio:
        for key, off in (("top_p", 1.0), ("top_k", 0), ("min_new_tokens", 0)):
            if getattr(settings, key) != off:
                raise UsageError(
                    f"{name} compares probabilities with those at sampling time, which {key}={getattr(settings, key)} "
                    f"would change: leave generation {key} at {off}."
                )
        if settings.temperature == 0:
            raise UsageError(f"{name} needs random samples: generation temperature must be above 0.")
    return settings
