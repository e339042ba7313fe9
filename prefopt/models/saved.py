"""The one reader of saved folders: what a folder says about the model in it, before any weight is loaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open

from prefopt.core.errors import ModelError

RUN_FILE = "prefopt.json"
"""What a run records about the model that it saves."""
ADAPTER_FILE, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# As peft and transformers name them, by the last part of a module's name.
_INPUTS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
_HEADS = ("lm_head", "embed_out")


@dataclass(frozen=True)
class SavedModel:
    """A model by its path or hub id.

    Attributes:
        name: The path or hub id.
        record: What the run that saved it recorded; empty where none did, and for a hub id.
        adapter: The config of the adapter in the folder; None of a whole model.
    """

    name: str
    record: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, name: str | Path) -> Self:
        """Read the folder.

        Raises:
            ModelError: One of its files is damaged.
        """
        if not str(name):
            # A model that was made from a config has no name, and no folder.
            return cls("")
        folder = Path(name)
        return cls(str(name), _read(folder / RUN_FILE) or {}, _read(folder / ADAPTER_FILE))

    @property
    def is_adapter(self) -> bool:
        """Whether it is the folder of an adapter."""
        return self.adapter is not None

    @property
    def base(self) -> str:
        """Path or hub id of the base of an adapter; the model itself without one.

        Raises:
            ModelError: The adapter does not name its base.
        """
        if self.adapter is None:
            return self.name
        base = self.adapter.get("base_model_name_or_path")
        if not base:
            raise ModelError(f"{self.name}/{ADAPTER_FILE} does not name its base model (base_model_name_or_path).")
        return base

    @property
    def quantized(self) -> bool:
        """Whether it is an adapter that was trained on a base in 4 bit, to which it belongs."""
        return self.is_adapter and self.record.get("adapter") == "qlora"

    @property
    def rewards(self) -> bool:
        """Whether it is the adapter of a reward model."""
        return self.is_adapter and self.adapter.get("task_type") == "SEQ_CLS"

    @property
    def encoding(self) -> dict[str, Any]:
        """The settings of the data, by name, with which texts were encoded in training."""
        return {key: self.record[key] for key in ("template_args", "prerendered") if self.record.get(key)}

    @cached_property
    def vocabulary(self) -> int | None:
        """Embeddings that an adapter was trained with, as its weights tell; None where they do not.

        An adapter on added tokens brings more than its base has.
        """
        path = Path(self.name) / ADAPTER_WEIGHTS
        if not self.is_adapter or not path.is_file():
            return None
        try:
            with safe_open(str(path), framework="pt") as weights:
                shapes = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
        sizes = [_rows(key, shape) for key, shape in shapes.items()]
        return max((size for size in sizes if size), default=None)


def _rows(key: str, shape: list[int]) -> int | None:
    """How many embeddings a weight of an adapter belongs to."""
    plain = key
    # The wrappers that peft puts around a layer.
    for wrapper in (".base_layer", ".original_module", ".modules_to_save", ".token_adapter"):
        plain = plain.replace(wrapper, "")
    module, _, kind = plain.rpartition(".")
    if kind == "weight" and module.endswith(".lora_B"):
        layer = module.removesuffix(".lora_B").rpartition(".")[2]
        return shape[0] if layer in _HEADS else None
    layer = module.rpartition(".")[2]
    if kind == "weight" and layer in (*_INPUTS, *_HEADS):
        return shape[0]
    return shape[1] if kind == "lora_embedding_A" and layer in _INPUTS else None


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no JSON object: the file is damaged.")
    return found
