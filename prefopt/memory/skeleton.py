"""A run's model as shapes: every layer, adapter and 4-bit weight of the real one, and not a single number of it."""

import warnings
from collections import Counter
from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

from prefopt.core.errors import ModelError
from prefopt.models.adapters import is_adapter_model
from prefopt.models.load import disable_dropout, quantization

BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a scale in NF4, and scales that share one of their own under double quantisation."""


def build(
    config: PretrainedConfig, *, lora: LoraConfig | None, quantized: bool, dtype: torch.dtype, rewards: bool = False
) -> nn.Module:
    """The model of a run on the meta device, in the precisions in which `prefopt.models.load` loads it.

    Args:
        config: of the base.
        lora: its adapter, or None.
        quantized: whether its linear layers are in 4 bit; the vocabulary head and the embeddings are not.
        dtype: of the rest of the frozen weights, or of all weights.
        rewards: a reward model, whose head is in float32.

    Raises:
        ModelError: transformers has no such model.
    """
    auto = AutoModelForSequenceClassification if rewards else AutoModelForCausalLM
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if rewards:
            config.num_labels = 1
        try:
            model = auto.from_config(config, dtype=dtype)
        except (ValueError, TypeError) as error:
            raise ModelError(
                f"{config.model_type} cannot be planned for: {str(error).strip().splitlines()[0]}"
            ) from error
        if rewards:
            model.score = nn.Linear(model.score.in_features, 1, bias=model.score.bias is not None)
        if quantized:
            replace_with_bnb_linear(model, get_keys_to_not_convert(model), quantization(dtype))
            model.is_loaded_in_4bit = True
        if lora is not None:
            model = get_peft_model(model, lora)
    disable_dropout(model)
    return model


def nf4_bytes(numbers: int) -> int:
    """Bytes of a weight of so many numbers in NF4 with double quantisation: 4 bit for each, 8 bit for the scale of 64,
    32 bit for the scale of 256 scales, one offset, and the two tables of levels (16 and 256 numbers)."""
    scales = -(-numbers // BLOCK)
    return -(-numbers // 2) + scales + 4 * -(-scales // NESTED_BLOCK) + 4 + 4 * (16 + 256)


def weight_bytes(model: nn.Module) -> Counter[str]:
    """Bytes of a model by part: ``embeddings``, ``head`` (0 where it is tied), ``layers``, ``adapter``, and the numbers
    that are trained, ``trained``."""
    base = model.get_base_model() if is_adapter_model(model) else model
    embeddings = {id(weight) for weight in base.get_input_embeddings().parameters()}
    output = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    head = {id(weight) for weight in output.parameters()} if output is not None else set()
    four_bit = {id(module.weight) for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)}
    parts: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        size = nf4_bytes(weight.numel()) if id(weight) in four_bit else weight.numel() * weight.element_size()
        if "lora_" in name or "modules_to_save" in name:
            parts["adapter"] += size
        elif id(weight) in embeddings:
            parts["embeddings"] += size
        else:
            parts["head" if id(weight) in head else "layers"] += size
        parts["trained"] += weight.numel() * weight.requires_grad
    parts["layers"] += sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    return parts


# ---- layers ----------------------------------------------------------------------------------------------------------


def layers_of(model: nn.Module) -> tuple[nn.Module, str]:
    """Where the list of layers is: its parent and its name there.

    Raises:
        ModelError: the model has no list of layers.
    """
    found = [
        (sum(weight.numel() for weight in child.parameters()), parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList)
    ]
    if not found:
        raise ModelError(f"{type(model).__name__} has no list of layers, so its memory cannot be planned.")
    _, parent, name = max(found, key=lambda one: one[0])
    return parent, name


def period_of(model: nn.Module) -> int:
    """After how many layers they repeat: 1 where all are alike."""
    parent, name = layers_of(model)
    kinds = getattr(_config(model), "layer_types", None)
    signs = []
    for number, layer in enumerate(getattr(parent, name)):
        shapes = tuple((key, tuple(weight.shape)) for key, weight in layer.named_parameters())
        signs.append((shapes, kinds[number] if kinds and number < len(kinds) else None))
    return next(k for k in range(1, len(signs) + 1) if all(signs[i] == signs[i % k] for i in range(len(signs))))


def cut(model: nn.Module, depth: int) -> None:
    """Keep the first ``depth`` layers."""
    parent, name = layers_of(model)
    setattr(parent, name, getattr(parent, name)[:depth])


def _config(model: nn.Module) -> Any:
    return model.config.get_text_config()


# ---- tensors without numbers -----------------------------------------------------------------------------------------


class _FourBit(bnb.nn.Linear4bit):
    """A 4-bit layer that takes its weight and its scales from where `materialise` has put them."""

    def forward(self, x: Tensor) -> Tensor:
        out = bnb.matmul_4bit(x.to(self.compute), self.packed, bias=self.bias, quant_state=self.state)
        return out.to(x.dtype)


def materialise(model: nn.Module, mode: FakeTensorMode) -> None:
    """Put tensors on the CPU that have a shape and no memory in place of a model's weights and buffers."""
    made: dict[int, Tensor] = {}
    with mode:
        for module in model.modules():
            if isinstance(module, bnb.nn.Linear4bit):
                _pack(module)
            for store in (module._parameters, module._buffers):
                for name, old in store.items():
                    if old is None:
                        continue
                    if id(old) not in made:
                        new = torch.empty(old.shape, dtype=old.dtype)
                        made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                    store[name] = made[id(old)]
            # Attributes that are tensors, such as rotary frequencies kept outside the buffers.
            for name, old in vars(module).items():
                if isinstance(old, Tensor):
                    setattr(module, name, torch.empty(old.shape, dtype=old.dtype))


def _pack(module: bnb.nn.Linear4bit) -> None:
    """Give a 4-bit layer its packed weight and the scales of it."""
    dtype, numbers = module.compute_dtype, module.weight.numel()
    scales = -(-numbers // BLOCK)
    nested = bnb.functional.QuantState(
        absmax=torch.empty(-(-scales // NESTED_BLOCK)),
        code=torch.empty(256),
        blocksize=NESTED_BLOCK,
        dtype=torch.float32,
    )
    state = bnb.functional.QuantState(
        absmax=torch.empty(scales, dtype=torch.uint8),
        shape=module.weight.shape,
        dtype=dtype,
        code=torch.empty(16),
        blocksize=BLOCK,
        quant_type="nf4",
        offset=torch.empty(()),
        state2=nested,
    )
    module.__class__ = _FourBit
    del module._parameters["weight"]
    module.compute, module.state = dtype, state
    module.register_buffer("packed", torch.empty(-(-numbers // 2), 1, dtype=torch.uint8), persistent=False)
