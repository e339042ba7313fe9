"""What a model computes, as a short text: the same for the same weights, in seconds for the largest."""

import hashlib
import json
from collections.abc import Collection
from typing import Any

import torch
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from prefopt.core.errors import UsageError
from prefopt.models.adapters import is_adapter_model

SAMPLE = 1024
"""Places of a weight, evenly spread, whose bits are read one by one."""

# Of a config: where it comes from, and what has no say in a forward pass.
_NOT_WEIGHED = {"transformers_version", "architectures", "use_cache", "dtype", "torch_dtype", "model_type_name"}
_NOT_WEIGHED |= {"base_model_name_or_path", "inference_mode", "revision", "peft_version", "auto_mapping"}


def fingerprint(model: nn.Module, adapter: str | None = None, *, without: Collection[str] = ()) -> str:
    """A hash of a base model, as it is in memory, and of one of its adapters or none.

    Of every weight of the base: name, shape, dtype, the sum of all its bits taken as 64-bit words, and the words at
    `SAMPLE` places. One changed number changes the sum. Quantized weights are hashed in their quantized form, with
    their scales. An adapter is hashed from its first byte to its last. The config counts as far as it says how to
    compute.

    Args:
        model: The model, plain or with adapters.
        adapter: The name of the adapter.
        without: Names of modules that do not count, such as a head that is drawn at random.

    Raises:
        UsageError: the weights are spread over processes, so none of them sees the whole.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(_settings(model.config.to_dict()))
    adapters = set(model.peft_config) if is_adapter_model(model) else set()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor) or not (adapters | set(without)).isdisjoint(name.split(".")):
            continue
        if tensor.numel() == 0:
            raise UsageError("reference_cache: the weights are spread over processes: leave it out.")
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")
        digest.update(f"{plain} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_gist(tensor))
    if adapter is not None:
        digest.update(_settings(model.peft_config[adapter].to_dict()))
        for name, tensor in sorted(get_peft_model_state_dict(model, adapter_name=adapter).items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(_bytes(tensor).cpu().numpy().tobytes())
    return digest.hexdigest()


def _settings(values: dict[str, Any]) -> bytes:
    kept = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in values.items()
        if key not in _NOT_WEIGHED and not key.startswith("_") and not key.endswith("_token_id")
    }
    return json.dumps(kept, sort_keys=True, default=str).encode()


def _bytes(tensor: Tensor) -> Tensor:
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return raw.clone() if raw.storage_offset() % 8 else raw


def _gist(tensor: Tensor) -> bytes:
    raw = _bytes(tensor)
    whole = len(raw) // 8 * 8
    words = raw[:whole].view(torch.int64)
    some = words[:: max(1, len(words) // SAMPLE)]
    # Sums of integers wrap around, and are the same in any order.
    parts = words.sum()[None], some, raw[whole:]
    return b"".join(part.cpu().numpy().tobytes() for part in parts)
