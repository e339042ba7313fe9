"""Adapters on a shared base: which one is active, and what of them is saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from prefopt.models.generation import write_generation_config

ROLE = "prefopt_"
"""How the names of adapters begin that serve the training of the policy and are no part of it."""

REFERENCE_ADAPTER = ROLE + "reference"
CRITIC_ADAPTER = ROLE + "critic"
REWARD_ADAPTER = ROLE + "reward"


def is_adapter_model(model: nn.Module) -> bool:
    """Whether the model is a base with adapters."""
    return isinstance(model, PeftModel)


def copy_adapter(model: PeftModel, source: str, target: str) -> None:
    """Add an adapter ``target`` to the model, frozen, with the configuration and weights of ``source``."""
    model.add_adapter(target, model.peft_config[source])
    weights = get_peft_model_state_dict(model, adapter_name=source)
    set_peft_model_state_dict(model, {key: value.clone() for key, value in weights.items()}, adapter_name=target)
    model.set_adapter(source)


@contextmanager
def active_adapter(model: PeftModel, name: str, *, trains: bool = False) -> Iterator[None]:
    """Switch to another adapter, frozen unless it ``trains``, and back.

    peft's ``set_adapter`` also decides what requires a gradient: going back makes the former adapter trainable again.
    Do not hold a graph of one adapter across the switch: gradient checkpointing recomputes with the active one.
    """
    before = model.active_adapter
    model.set_adapter(name, inference_mode=not trains)
    try:
        yield
    finally:
        model.set_adapter(before)


@contextmanager
def adapter_off(model: PeftModel) -> Iterator[None]:
    """The base alone, and the adapter on again.

    As peft's ``disable_adapter``, which first looks at the state of every layer, and takes longer for that than for the
    switch.
    """
    model.base_model.disable_adapter_layers()
    try:
        yield
    finally:
        model.base_model.enable_adapter_layers()


def save_policy(model: nn.Module, folder: str | Path, **options: object) -> None:
    """Save the policy in the format of transformers or peft, without the adapters of other roles."""
    if is_adapter_model(model):
        names = [name for name in model.peft_config if not name.startswith(ROLE)]
        model.save_pretrained(str(folder), selected_adapters=names, **options)
        # peft writes none, and whoever exports or serves the adapter must know where turns end.
        write_generation_config(model.get_base_model(), folder)
    else:
        model.save_pretrained(str(folder), **options)
