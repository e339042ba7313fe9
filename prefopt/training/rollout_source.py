"""What an online run has besides a trainer: rewards, rollouts, and a critic."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainingArguments

from prefopt.algorithms import Algorithm
from prefopt.core.batches import Completions, Rollouts, TokenLogps
from prefopt.core.console import say
from prefopt.core.counts import step_loss
from prefopt.core.errors import UsageError
from prefopt.core.loss import Loss
from prefopt.core.micro_batch import MicroBatch
from prefopt.core.objective import Objective
from prefopt.data import DataSettings, Encoder, TokenizedDataset
from prefopt.models import Critic, Reference, make_critic
from prefopt.models.critic import ModelCritic
from prefopt.objectives import get_objective
from prefopt.rewards.calling import RewardFunction
from prefopt.rewards.names import load_reward
from prefopt.rewards.reward import make_reward
from prefopt.rewards.shared import SharedRewardModel, shares_base
from prefopt.rollouts import (
    EvaluationRollouts,
    GenerationSettings,
    PromptStream,
    RolloutLoader,
    RolloutMaker,
    TransformersGenerator,
)
from prefopt.scoring import score_values
from prefopt.training.arguments import CHECKPOINTING

CRITIC_FILE = "critic.safetensors"
REFERENCE_FILE = "reference.safetensors"


class OnlineRun:
    """Rollouts for training and evaluation, and the critic that is trained beside the policy.

    Args:
        algorithm: an online one.
        policy: the model that is trained, before its first update.
        tokenizer: of the policy.
        reference: where the algorithm needs one.
        reward: whatever `make_reward` takes.
        generation: fields of `GenerationSettings`.
        data: how prompts are encoded.
        trust_remote_code: run code that comes with a reward model.
    """

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
        _check_plan(algorithm)
        self.algorithm, self.reference = algorithm, reference
        self.settings = generation_settings(algorithm, generation)
        self.reward = make_reward(reward, load=lambda name: self._reward_model(policy, name, trust_remote_code))
        self.generator = TransformersGenerator(tokenizer, Encoder(tokenizer, data).stop_ids())
        self.pad_token_id = tokenizer.pad_token_id
        critic = algorithm.critic
        self.critic: Critic | None = None
        self.value: Objective | None = None
        if critic is not None:
            self.critic = make_critic(None if critic.critic == "auto" else critic.critic, policy)
            self.value = get_objective("value", epsilon_value=critic.epsilon_value)
        self.start = Start(policy) if algorithm.plan.restart else None
        self.loader: RolloutLoader | None = None
        self._moved: list[Tensor] = []

    @property
    def separate_critic(self) -> Critic | None:
        """The critic, if it is trained by forward and backward passes of its own."""
        return self.critic if self.critic is not None and self.critic.separate else None

    @property
    def objective(self) -> Objective:
        """The loss of the policy; with the critic's where that sits on the policy's own hidden states."""
        if self.critic is None or self.critic.separate:
            return self.algorithm.objective
        return self.algorithm.objective + self.algorithm.critic.vf_coef * self.value

    @staticmethod
    def _reward_model(policy: nn.Module, name: str, trust_remote_code: bool) -> RewardFunction:
        """A reward model by name; one that is an adapter on the policy's base shares that base."""
        if shares_base(policy, name):
            say(f"reward {name}: its adapter sits on the policy's own base.")
            return SharedRewardModel(policy, name)
        return load_reward(name, trust_remote_code=trust_remote_code)

    # ---- rollouts ----------------------------------------------------------------------------------------------

    def loaders(
        self,
        policy: Callable[[], nn.Module],
        args: TrainingArguments,
        accelerator: Accelerator,
        record: Callable[[dict[str, Tensor]], None],
        optimizer: Callable[[], torch.optim.Optimizer],
    ) -> "Loaders":
        """What makes loaders, once training arguments and processes are known."""
        if isinstance(self.critic, ModelCritic) and getattr(args, CHECKPOINTING):
            _checkpoint(self.critic.model, getattr(args, f"{CHECKPOINTING}_kwargs"))

        def gather(own: Tensor) -> Tensor:
            return own if args.world_size == 1 else torch.cat(gather_object([own.cpu()]))

        maker = RolloutMaker(
            policy,
            self.algorithm.source,
            generator=self.generator,
            settings=self.settings,
            reward=self.reward,
            pad_token_id=self.pad_token_id,
            reference=self.reference,
            critic=self.critic,
            rows=args.per_device_train_batch_size * self.settings.n,
            gather=gather,
            autocast=accelerator.autocast,
            record=record,
        )
        return Loaders(self, maker, policy, args, optimizer)

    # ---- the critic --------------------------------------------------------------------------------------------

    def train_critic(
        self,
        policy: nn.Module,
        batch: MicroBatch,
        denominators: Mapping[str, float],
        accelerator: Accelerator,
    ) -> Mapping[str, Tensor]:
        """Forward and backward of a critic of its own; its metrics.

        Call it after the backward pass of the policy, for gradient checkpointing recomputes with the role that is on.
        """
        critic = self.critic
        with critic.activated(policy) as body:
            with accelerator.autocast():
                valued = self._valued(body, batch)
            loss = self.value(valued)
            accelerator.backward(
                self.algorithm.critic.vf_coef * step_loss(loss, denominators, accelerator.num_processes)
            )
        return loss.metrics

    def average_critic(self, policy: nn.Module, accelerator: Accelerator) -> None:
        """At the end of a step, average the critic's gradients over processes, as the policy's are.

        The wrapper of parallel training knows nothing of these weights.
        """
        if accelerator.sync_gradients and accelerator.num_processes > 1:
            for weight in self.critic.parameters(policy):
                # A vocabulary head that is saved with the adapter says nothing about values.
                if weight.grad is not None:
                    weight.grad = accelerator.reduce(weight.grad, "mean")

    def _valued(self, body: nn.Module, batch: MicroBatch) -> Rollouts:
        """The micro-batch with the critic's values, and without log-probabilities, which it does not read."""
        layout = batch.rows.layout
        values = layout.pad(score_values(body, batch.rows, self.critic.head))
        rows = Completions.from_tokens(TokenLogps(mask=layout.mask, logps=torch.zeros_like(values)))
        return Rollouts.assemble(rows, {**batch.padded_labels, "values": values})

    def add_to(self, optimizer: torch.optim.Optimizer, policy: nn.Module, learning_rate: float) -> None:
        """Train the critic's own weights with the policy's optimizer, at its own learning rate."""
        weights = list(self.critic.head.parameters())
        if self.critic.separate:
            weights = self.critic.parameters(policy)
        rate = learning_rate * self.algorithm.critic.critic_rate
        optimizer.add_param_group({"params": weights, "lr": rate, "weight_decay": 0.0})

    # ---- the end of a step -------------------------------------------------------------------------------------

    @property
    def epoch(self) -> float:
        """Passes over the prompts so far."""
        return self.loader.given / len(self.loader)

    def metrics(self, loss: Loss) -> dict[str, Tensor]:
        """Those of a loss of `objective`, under the same names whether the critic's is part of it or not.

        ``kl`` is that of the reward where there is one, logged with the rollout; the loss's own is then ``kl/loss``.
        """
        found = dict(loss.metrics)
        if self.critic is not None and not self.critic.separate:
            parts = f"{self.algorithm.objective.name}/", f"{self.value.name}/{self.value.name}"
            found = {k.removeprefix(parts[0]).replace(parts[1], self.value.name): v for k, v in found.items()}
        if "kl" in found and "ref_logps" in self.algorithm.source.needs:
            found["kl/loss"] = found.pop("kl")
        return found

    def watch(self, metrics: Mapping[str, Tensor]) -> None:
        """Add up how far the policy has moved from the one that sampled, where a limit is set."""
        if self.algorithm.plan.target_kl == 0:
            return
        values = metrics["policy/approx_kl"].double()
        self._moved.append(torch.stack([values.sum(), torch.ones_like(values).sum()]))

    def end_of_step(self, policy: nn.Module, accelerator: Accelerator) -> None:
        """Forget the critic's gradients, and leave the rollout if the policy has moved too far from it."""
        if self.critic is not None:
            for weight in self.critic.parameters(policy):
                weight.grad = None
        if not self._moved:
            return
        total, tokens = accelerator.reduce(torch.stack(self._moved).sum(dim=0), "sum").tolist()
        self._moved = []
        if total / max(tokens, 1.0) > self.algorithm.plan.target_kl:
            self.loader.leave()

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def save(self, folder: Path, policy: nn.Module, *, main: bool) -> None:
        """Write what a run needs to go on: the rollout and its place on every process, critic and rounds once."""
        if self.loader is not None:
            self.loader.save(folder)
        if main and self.critic is not None:
            save_file(self.critic.state(policy), folder / CRITIC_FILE)
        if main and self.algorithm.plan.renew_reference:
            save_file(self.reference.state(policy), folder / REFERENCE_FILE)

    def load(self, folder: Path, policy: nn.Module) -> None:
        """Go on where `save` was called."""
        if self.loader is not None:
            self.loader.load(folder)
        if self.critic is not None and (folder / CRITIC_FILE).is_file():
            self.critic.load(policy, load_file(folder / CRITIC_FILE))
        if self.algorithm.plan.renew_reference and (folder / REFERENCE_FILE).is_file():
            self.reference.load(policy, load_file(folder / REFERENCE_FILE))


@dataclasses.dataclass(frozen=True)
class Loaders:
    """Makes the data loaders of an online run."""

    run: OnlineRun
    maker: RolloutMaker
    policy: Callable[[], nn.Module]
    args: TrainingArguments
    optimizer: Callable[[], torch.optim.Optimizer]

    def train(self, dataset: TokenizedDataset, seed: int) -> RolloutLoader:
        """Rollouts for training, kept so that a checkpoint can hold their state."""
        args = self.args
        self.run.loader = RolloutLoader(
            self.maker,
            PromptStream(dataset, seed, world=args.world_size, rank=args.process_index),
            self.run.algorithm.plan,
            micro_batch=args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            seed=seed,
            begin=lambda: self.run.reference.renew(self.policy()),
            restart=lambda: self.run.start.restore(self.policy(), self.optimizer()),
        )
        return self.run.loader

    def evaluation(self, dataset: TokenizedDataset, seed: int) -> EvaluationRollouts:
        """Rollouts for evaluation, the same every time."""
        args = self.args
        world, rank = args.world_size, args.process_index
        return EvaluationRollouts(self.maker, dataset, args.eval_batch_size, seed=seed, world=world, rank=rank)


class Start:
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


def _checkpoint(model: nn.Module, options: Mapping[str, Any] | None) -> None:
    """Switch on for a model of its own what transformers switches on for the one that it trains."""
    kwargs = dict(options or {})
    own = {name: kwargs.pop(name) for name in ("every_n_layers", "offload") if name in kwargs}
    getattr(model, f"{CHECKPOINTING}_enable")(**{f"{CHECKPOINTING}_kwargs": kwargs or None}, **own)


def _check_plan(algorithm: Algorithm) -> None:
    """Refuse what would have no effect."""
    name, plan = algorithm.name, algorithm.plan
    if plan.target_kl > 0 and not algorithm.uses_ratio:
        raise UsageError(f"{name} does not measure how far it is from the policy that sampled: leave target_kl out.")
    if plan.renew_reference and not algorithm.needs_reference:
        raise UsageError(f"{name} uses no reference model: leave renew_reference out.")
    if plan.restart and algorithm.uses_ratio:
        raise UsageError(f"{name} learns from samples of the very policy that it improves: leave restart out.")


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
    name, samplers = algorithm.name, len(algorithm.source.samplers)
    if settings.n % samplers:
        raise UsageError(f"{name} samples from {samplers} policies: generation n={settings.n} must be even.")
    if algorithm.uses_ratio:
        for key, off in (("top_p", 1.0), ("top_k", 0)):
            if getattr(settings, key) != off:
                raise UsageError(
                    f"{name} compares probabilities with those at sampling time, which {key}={getattr(settings, key)} "
                    f"would change: leave generation {key} at {off}."
                )
        if settings.temperature == 0:
            raise UsageError(f"{name} needs random samples: generation temperature must be above 0.")
    return settings
