"""PPO's critic, trained next to the policy."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from prefopt.algorithms import Algorithm
from prefopt.algorithms.assembly import CriticSettings
from prefopt.core.batches import Completions, Rollouts, TokenLogps
from prefopt.core.console import say
from prefopt.core.counts import step_loss
from prefopt.core.errors import UsageError
from prefopt.core.micro_batch import MicroBatch
from prefopt.core.objective import Objective
from prefopt.models import head_of, is_adapter_model, make_critic
from prefopt.models.critic import CriticStart, ModelCritic
from prefopt.objectives import get_objective
from prefopt.rewards.reward import Reward
from prefopt.rewards.reward_model import RewardModel
from prefopt.rewards.shared import SharedRewardModel
from prefopt.scoring import score_values
from prefopt.training.arguments import CHECKPOINTING
from prefopt.training.auxiliary import Auxiliary
from prefopt.training.context import TrainingContext
from prefopt.training.preparation import StepContext
from prefopt.training.splitting import MicroBatchSplitter

CRITIC_FILE = "critic.safetensors"
STEPS = "steps"


class CriticTrainer(Auxiliary):
    """Trains a critic with the loss ``value``: its passes, gradients, optimizer group and checkpoint.

    A head on the policy's own hidden states shares the policy's pass, so its loss is a summand of the policy's. Any
    other critic has a forward and a backward pass of its own, after the policy's backward pass: gradient checkpointing
    recomputes with the role that is on.

    Args:
        settings: The critic's kind, rate and weight.
        policy: The model that is trained, before its first update.
        start: What the critic starts from, if not from the policy.

    Attributes:
        critic: The critic.
    """

    def __init__(self, settings: CriticSettings, policy: nn.Module, start: CriticStart | None = None) -> None:
        self.settings = settings
        self.critic = make_critic(None if settings.critic == "auto" else settings.critic, policy, start)
        self.steps = 0
        self.value: Objective = get_objective("value", epsilon_value=settings.epsilon_value)
        self.models = self.critic.own_models
        self.value_head = None if self.critic.separate else self.critic.head
        self._policy_loss = ""

    def joined(self, objective: Objective) -> Objective:
        if self.critic.separate:
            return objective
        self._policy_loss = objective.name
        return objective + self.settings.vf_coef * self.value

    def metrics(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.critic.separate:
            return dict(found)
        policy, value = f"{self._policy_loss}/", f"{self.value.name}/{self.value.name}"
        return {key.removeprefix(policy).replace(value, self.value.name): one for key, one in found.items()}

    def attach(self, context: TrainingContext) -> None:
        self.context = context
        # Before the optimizer has states for its weights, they must be where the policy is.
        self.critic.follow(context.policy)
        options = getattr(context.args, f"{CHECKPOINTING}_kwargs")
        if isinstance(self.critic, ModelCritic) and getattr(context.args, CHECKPOINTING):
            _checkpoint(self.critic.model, options)

    def extend_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Add the critic's own weights, with their own learning rate."""
        rate = self.context.args.learning_rate * self.settings.critic_rate
        optimizer.add_param_group({"params": self._weights(), "lr": rate, "weight_decay": 0.0})

    def after_backward(self, batch: MicroBatch, step: StepContext, splitter: MicroBatchSplitter) -> None:
        if self.critic.separate:
            splitter.each(batch, lambda part, *_: self._learn(part, step.denominators), self._weights())
        self._average()
        if self.steps < self.settings.critic_warmup and self.context.accelerator.sync_gradients:
            # Weights without a gradient are left alone by the optimizer, their moments too.
            own = {id(weight) for weight in self._weights()}
            for weight in self.context.policy.parameters():
                if id(weight) not in own:
                    weight.grad = None

    def _learn(self, batch: MicroBatch, denominators: Mapping[str, float]) -> None:
        """Forward and backward of the critic."""
        accelerator = self.context.accelerator
        with self.critic.activated(self.context.policy) as body:
            with accelerator.autocast():
                valued = self._valued(body, batch)
            loss = self.value(valued)
            accelerator.backward(self.settings.vf_coef * step_loss(loss, denominators, accelerator.num_processes))
        self.context.metrics.add(loss.metrics)

    def _valued(self, body: nn.Module, batch: MicroBatch) -> Rollouts:
        """The micro-batch with the critic's values, and without log-probabilities, which it does not read."""
        layout = batch.rows.layout
        values = layout.pad(score_values(body, batch.rows, self.critic.head))
        rows = Completions.from_tokens(TokenLogps(mask=layout.mask, logps=torch.zeros_like(values)))
        return Rollouts.assemble(rows, {**batch.padded_labels, "values": values})

    def _average(self) -> None:
        """At the end of a step, average the critic's gradients over processes, as the policy's are.

        The wrapper of parallel training knows nothing of these weights.
        """
        accelerator = self.context.accelerator
        if accelerator.sync_gradients and accelerator.num_processes > 1:
            for weight in self._weights():
                # A vocabulary head that is saved with the adapter says nothing about values.
                if weight.grad is not None:
                    weight.grad = accelerator.reduce(weight.grad, "mean")

    def clipped_with_policy(self) -> list[nn.Parameter]:
        return [] if self.critic.separate else self._weights()

    def clipped_apart(self) -> list[nn.Parameter]:
        return self._weights() if self.critic.separate else []

    def end_of_step(self) -> None:
        """Forget the critic's gradients, which transformers does only for the policy's."""
        self.steps += 1
        for weight in self._weights():
            weight.grad = None

    def save(self, folder: Path, *, main: bool) -> None:
        if main:
            state = self.critic.state(self.context.policy)
            save_file({**state, STEPS: torch.tensor(self.steps)}, folder / CRITIC_FILE)

    def load(self, folder: Path) -> None:
        if (folder / CRITIC_FILE).is_file():
            state = load_file(folder / CRITIC_FILE)
            self.steps = int(state.pop(STEPS))
            self.critic.load(self.context.policy, state)

    def _weights(self) -> list[nn.Parameter]:
        """Everything of the critic that is trained apart from the policy's weights."""
        return self.critic.parameters(self.context.policy)


def critic_start(
    algorithm: Algorithm, reward: Reward, policy: nn.Module, tokenizer: PreTrainedTokenizerBase
) -> CriticStart | None:
    """The reward model that a critic starts from; None where it starts from the policy.

    Raises:
        UsageError: a reward model is asked for, and there is none that fits.
    """
    settings = algorithm.critic
    if settings.critic_start == "policy":
        return None
    kind = settings.critic if settings.critic != "auto" else "adapter" if is_adapter_model(policy) else "model"
    found = [(name, one, weight) for name, (one, weight) in reward.functions.items() if isinstance(one, RewardModel)]
    why = "no reward is a reward model" if not found else ""
    for name, one, weight in found:
        why = _unfit(kind, one, policy, tokenizer)
        if not why:
            say(f"{algorithm.name}: the critic starts from the reward model {name}.")
            if isinstance(one, SharedRewardModel):
                return CriticStart(head=one.head, weight=weight, adapter=one.adapter)
            return CriticStart(head=head_of(one.model), weight=weight, model=one.model)
    if settings.critic_start == "reward":
        raise UsageError(f"{algorithm.name}: critic_start='reward' is not possible: {why}. Leave it out.")
    return None


def _unfit(kind: str, reward: RewardModel, policy: nn.Module, tokenizer: PreTrainedTokenizerBase) -> str:
    """Why a critic cannot start from a reward model; empty if it can."""
    if kind == "head":
        return "critic='head' reads the policy's own hidden states"
    if reward.tokenizer.get_vocab() != tokenizer.get_vocab():
        return "the reward model has another vocabulary than the policy"
    if kind == "adapter":
        return "" if isinstance(reward, SharedRewardModel) else "the reward model is no adapter on the policy's base"
    if isinstance(reward, SharedRewardModel) or is_adapter_model(reward.model) or is_adapter_model(policy):
        return "the reward model is an adapter"
    own, other = (
        {name: value.shape for name, value in model.base_model.named_parameters()} for model in (policy, reward.model)
    )
    return "" if own == other else "the reward model has another architecture than the policy"


def _checkpoint(model: nn.Module, options: Mapping[str, object] | None) -> None:
    """Switch on for a model of its own what transformers switches on for the one that it trains."""
    kwargs = dict(options or {})
    own = {name: kwargs.pop(name) for name in ("every_n_layers", "offload") if name in kwargs}
    getattr(model, f"{CHECKPOINTING}_enable")(**{f"{CHECKPOINTING}_kwargs": kwargs or None}, **own)
