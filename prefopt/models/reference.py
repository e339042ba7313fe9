"""The reference model: by default the policy as it arrived, at the least possible cost in memory."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefopt.core.errors import ModelError, UsageError
from prefopt.models.adapters import REFERENCE_ADAPTER, active_adapter, adapter_off, copy_adapter, is_adapter_model
from prefopt.models.copies import beside, copy_of
from prefopt.models.fingerprint import fingerprint
from prefopt.models.load import ModelSettings, disable_dropout, load_by_name
from prefopt.models.saved import SavedModel


class Reference(ABC):
    """Gives the reference for the time of a ``with`` block; the policy is as before when it ends."""

    description: str

    @abstractmethod
    def activated(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Context manager that yields the model to score the reference with. Only for use without gradient."""

    def renew(self, policy: nn.Module) -> None:
        """Make the policy as it is now the reference.

        Raises:
            UsageError: this reference has no weights of its own.
        """
        raise UsageError(f"{self.description} cannot be renewed: leave reference= out.")

    def state(self, policy: nn.Module) -> dict[str, Tensor]:
        """The weights that `renew` changes, for a checkpoint."""
        return {}

    def load(self, policy: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of `state`; a reference without weights of its own has none."""
        return

    def fingerprint(self, policy: nn.Module) -> str:
        """A hash of what this reference computes (see `prefopt.models.fingerprint`).

        Raises:
            UsageError: it has no weights that could be hashed.
        """
        raise UsageError(f"{self.description} cannot be told from others: leave reference_cache= out.")

    @property
    def own_models(self) -> tuple[nn.Module, ...]:
        """Models with weights of their own, beside the policy's."""
        return ()

    def release(self) -> "Reference":
        """What is left of it once all of its log-probs are known: itself, where it takes no memory of its own."""
        return self


class AdapterOff(Reference):
    """The base under a new adapter, which costs nothing: the adapter is switched off."""

    description = "the base model (adapter off)"

    @contextmanager
    def activated(self, policy: nn.Module) -> Iterator[nn.Module]:
        with adapter_off(policy):
            yield policy

    def fingerprint(self, policy: nn.Module) -> str:
        return fingerprint(policy)


class AdapterCopy(Reference):
    """A frozen adapter on the policy's own base."""

    description = "a frozen copy of the adapter that the model arrived with"

    @contextmanager
    def activated(self, policy: nn.Module) -> Iterator[nn.Module]:
        with active_adapter(policy, REFERENCE_ADAPTER):
            yield policy

    def renew(self, policy: nn.Module) -> None:
        self.load(policy, get_peft_model_state_dict(policy, adapter_name=policy.active_adapter))

    def state(self, policy: nn.Module) -> dict[str, Tensor]:
        weights = get_peft_model_state_dict(policy, adapter_name=REFERENCE_ADAPTER)
        return {name: value.detach().cpu().contiguous() for name, value in weights.items()}

    def load(self, policy: nn.Module, state: Mapping[str, Tensor]) -> None:
        copies = {name: value.detach().clone() for name, value in state.items()}
        set_peft_model_state_dict(policy, copies, adapter_name=REFERENCE_ADAPTER)

    def fingerprint(self, policy: nn.Module) -> str:
        return fingerprint(policy, REFERENCE_ADAPTER)


class FrozenModel(Reference):
    """A model of its own.

    Args:
        model: The model, which is frozen; None once all that is asked of it is known, and its weights are let go.
        description: What it is called in messages.
    """

    def __init__(self, model: nn.Module | None, description: str) -> None:
        self.model = None if model is None else model.eval().requires_grad_(False)
        self.description = description

    @property
    def own_models(self) -> tuple[nn.Module, ...]:
        return () if self.model is None else (self.model,)

    @contextmanager
    def activated(self, policy: nn.Module) -> Iterator[nn.Module]:
        if self.model is None:
            raise UsageError(
                f"the reference ({self.description}) was let go when reference_cache= had all of its log-probs: give "
                "the dataset that is evaluated as eval_dataset= of the Trainer, or leave reference_cache= out."
            )
        yield beside(policy, self.model)

    @torch.no_grad()
    def renew(self, policy: nn.Module) -> None:
        self.load(policy, dict(policy.named_parameters()))

    def state(self, policy: nn.Module) -> dict[str, Tensor]:
        return {name: value.detach().cpu().contiguous() for name, value in self.model.named_parameters()}

    @torch.no_grad()
    def load(self, policy: nn.Module, state: Mapping[str, Tensor]) -> None:
        for name, value in self.model.named_parameters():
            value.copy_(state[name])

    def fingerprint(self, policy: nn.Module) -> str:
        return fingerprint(self.model, self.model.active_adapter if is_adapter_model(self.model) else None)

    def release(self) -> Reference:
        return FrozenModel(None, self.description)


class InitialPolicy(Reference):
    """The policy itself, as long as it has not been trained: for a run that asks its reference before the first step
    for all that it will ever want to know."""

    description = "the model as it arrived, asked before the first step"

    @contextmanager
    def activated(self, policy: nn.Module) -> Iterator[nn.Module]:
        yield policy

    def fingerprint(self, policy: nn.Module) -> str:
        return fingerprint(policy)

    def release(self) -> Reference:
        return FrozenModel(None, self.description)


def make_reference(
    policy: nn.Module,
    reference: str | Path | nn.Module | None,
    *,
    arrived_with_adapter: bool,
    settings: ModelSettings,
    renewable: bool = False,
    cached: bool = False,
) -> Reference:
    """The reference for a policy. Call it before the first update: it freezes the policy as it is now.

    Args:
        policy: the model that will be trained.
        reference: None for the policy as it arrived; else a path, a hub id or a loaded model.
        arrived_with_adapter: whether the policy's adapter holds training of its own (an SFT adapter, for one).
        settings: how a reference given by name is loaded.
        renewable: whether the policy will become its own reference later, for which it takes weights of its own.
        cached: whether all of its log-probs are taken before the first update, so that it needs no copy.
    """
    if reference is not None:
        return _given(policy, reference, settings)
    if not is_adapter_model(policy):
        return InitialPolicy() if cached else FrozenModel(copy_of(policy), "a frozen copy of the model as it arrived")
    if arrived_with_adapter or renewable:
        copy_adapter(policy, policy.active_adapter, REFERENCE_ADAPTER)
        return AdapterCopy()
    return AdapterOff()


def _given(policy: nn.Module, reference: str | Path | nn.Module, settings: ModelSettings) -> Reference:
    if isinstance(reference, (PreTrainedModel, PeftModel)):
        if reference is policy:
            raise UsageError("reference= is the very model that is trained; leave it out or pass a copy.")
        return FrozenModel(reference, "the model given as reference")
    if not isinstance(reference, (str, Path)):
        raise UsageError(f"reference must be a path, a hub id or a transformers model, not {type(reference).__name__}.")
    saved = SavedModel.of(reference)
    if is_adapter_model(policy) and saved.is_adapter:
        own_base = policy.peft_config[policy.active_adapter].base_model_name_or_path
        same_numbers = saved.quantized == bool(getattr(policy.get_base_model(), "is_loaded_in_4bit", False))
        if own_base and own_base == saved.base and same_numbers:
            _check_embeddings(policy, saved)
            trained = policy.active_adapter
            policy.load_adapter(saved.name, REFERENCE_ADAPTER, is_trainable=False)
            policy.set_adapter(trained)
            return AdapterCopy()
    if saved.is_adapter:
        # The settings of the policy's adapter say nothing about this one.
        settings = replace(settings, adapter="qlora" if saved.quantized else None, lora={})
    model = load_by_name(str(reference), settings)
    disable_dropout(model)
    return FrozenModel(model, f"the model {reference}")


def _check_embeddings(policy: nn.Module, saved: SavedModel) -> None:
    rows = policy.get_input_embeddings().weight.shape[0]
    if saved.vocabulary not in (None, rows):
        raise ModelError(
            f"the reference {saved.name} was trained with {saved.vocabulary} embeddings, and the policy has {rows}: "
            "give a reference with the same tokenizer."
        )
