"""The critic of PPO: what it is made of, where its hidden states come from, and which of its weights are trained."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from prefopt.core.errors import UsageError
from prefopt.models.adapters import CRITIC_ADAPTER, active_adapter, is_adapter_model
from prefopt.models.copies import beside, copy_of
from prefopt.models.reward_head import ScalarHead


@dataclass(frozen=True)
class CriticStart:
    """A reward model that a critic starts from.

    Attributes:
        head: The reward model's head.
        weight: The weight of its reward in the total.
        model: The reward model, where it is one of its own.
        adapter: The name of its adapter, where it shares the policy's base.
    """

    head: nn.Linear
    weight: float
    model: nn.Module | None = None
    adapter: str = ""


class Critic(ABC):
    """Values V(x, y_<t) = w·h_t + b from hidden states h of a language model, in float32.

    w and b start at 0, or as those of a reward model.

    Attributes:
        head: the linear map.
        separate: whether the hidden states take a forward pass of their own (and a backward pass, so that gradient
            checkpointing recomputes with the right weights).
    """

    separate = True

    def __init__(self, policy: nn.Module, start: CriticStart | None = None) -> None:
        hidden = policy.get_output_embeddings().in_features
        self.head = ScalarHead(hidden, 1, device=next(policy.parameters()).device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if start is not None:
            with torch.no_grad():
                self.head.weight.copy_(start.weight * start.head.weight)
                if start.head.bias is not None:
                    self.head.bias.copy_(start.weight * start.head.bias)

    @abstractmethod
    def activated(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Context manager that yields the language model whose hidden states the head reads, ready to be trained."""

    @property
    def own_models(self) -> tuple[nn.Module, ...]:
        """Models with weights of their own, beside the policy's."""
        return ()

    @abstractmethod
    def body(self, policy: nn.Module) -> dict[str, nn.Parameter]:
        """The weights besides the head that are the critic's alone, by name."""

    def follow(self, policy: nn.Module) -> None:
        """Move what is no module of the policy to its device, in place, before an optimizer has states for it."""
        self.head.to(next(policy.parameters()).device)

    def parameters(self, policy: nn.Module) -> list[nn.Parameter]:
        """Everything of the critic that is trained apart from the policy."""
        return [*self.head.parameters(), *self.body(policy).values()]

    def state(self, policy: nn.Module) -> dict[str, Tensor]:
        """Its weights by name, for a checkpoint."""
        own = {f"body.{name}": value for name, value in self.body(policy).items()}
        own |= {f"head.{name}": value for name, value in self.head.state_dict().items()}
        return {name: value.detach().cpu().contiguous() for name, value in own.items()}

    @torch.no_grad()
    def load(self, policy: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of `state`."""
        self.head.load_state_dict({k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")})
        for name, parameter in self.body(policy).items():
            parameter.copy_(state[f"body.{name}"])


class HeadCritic(Critic):
    """A head on the policy's own hidden states: no further forward pass, and the policy's weights learn for both."""

    separate = False

    @contextmanager
    def activated(self, policy: nn.Module) -> Iterator[nn.Module]:
        yield policy

    def body(self, policy: nn.Module) -> dict[str, nn.Parameter]:
        return {}


class AdapterCritic(Critic):
    """An adapter of its own on the policy's base, a copy of the policy's or of a reward model's."""

    def __init__(self, policy: nn.Module, start: CriticStart | None = None) -> None:
        super().__init__(policy, start)
        name = policy.active_adapter
        source = name if start is None else start.adapter
        config = copy.deepcopy(policy.peft_config[source])
        # A reward model's adapter is frozen.
        config.inference_mode = policy.peft_config[name].inference_mode
        policy.add_adapter(CRITIC_ADAPTER, config)
        weights = get_peft_model_state_dict(policy, adapter_name=source)
        set_peft_model_state_dict(policy, {k: v.clone() for k, v in weights.items()}, adapter_name=CRITIC_ADAPTER)
        policy.set_adapter(name)

    @contextmanager
    def activated(self, policy: nn.Module) -> Iterator[nn.Module]:
        with active_adapter(policy, CRITIC_ADAPTER, trains=torch.is_grad_enabled()):
            yield policy

    def body(self, policy: nn.Module) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in policy.named_parameters() if f".{CRITIC_ADAPTER}." in name}


class ModelCritic(Critic):
    """A model of its own: at the start a copy of the policy's trained weights on those that are frozen.

    The vocabulary head says nothing about values, so it stays the policy's. A reward model's weights take the place of
    the policy's where the critic starts from one.
    """

    def __init__(self, policy: nn.Module, start: CriticStart | None = None) -> None:
        super().__init__(policy, start)
        embeddings = {id(weight) for weight in policy.get_input_embeddings().parameters()}
        head = [weight for weight in policy.get_output_embeddings().parameters() if id(weight) not in embeddings]
        self.model = copy_of(policy, head)
        if start is not None:
            theirs = dict(start.model.base_model.named_parameters())
            with torch.no_grad():
                for name, weight in self.model.base_model.named_parameters():
                    if weight.requires_grad:
                        weight.copy_(theirs[name])

    @property
    def own_models(self) -> tuple[nn.Module, ...]:
        return (self.model,)

    def follow(self, policy: nn.Module) -> None:
        super().follow(policy)
        beside(policy, self.model)

    @contextmanager
    def activated(self, policy: nn.Module) -> Iterator[nn.Module]:
        yield beside(policy, self.model).train(policy.training)

    def body(self, policy: nn.Module) -> dict[str, nn.Parameter]:
        unused = {id(weight) for weight in self.model.get_output_embeddings().parameters()}
        embeddings = {id(weight) for weight in self.model.get_input_embeddings().parameters()}
        return {
            name: weight
            for name, weight in self.model.named_parameters()
            if weight.requires_grad and (id(weight) not in unused or id(weight) in embeddings)
        }


def make_critic(kind: str | None, policy: nn.Module, start: CriticStart | None = None) -> Critic:
    """The critic for a policy; by default an adapter of its own beside an adapter, and a model beside a model.

    Args:
        kind: ``"head"``, ``"adapter"``, ``"model"`` or None.
        policy: the model that will be trained, before its first update.
        start: a reward model to start from, which fits that kind.

    Raises:
        UsageError: an adapter is asked for beside a policy without one.
    """
    adapters = is_adapter_model(policy)
    kind = kind or ("adapter" if adapters else "model")
    if kind == "adapter" and not adapters:
        raise UsageError("critic='adapter' needs a policy with an adapter: choose adapter='lora', or critic='model'.")
    return {"head": HeadCritic, "adapter": AdapterCritic, "model": ModelCritic}[kind](policy, start)
