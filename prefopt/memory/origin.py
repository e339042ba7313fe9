"""What is known of a model before its weights are loaded, or before there are any."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from prefopt.core.errors import ModelError
from prefopt.models.export import RUN_FILE
from prefopt.models.load import base_of, why_not_loaded


@dataclass(frozen=True)
class Origin:
    """A model that is named, given, or will be made by an earlier stage.

    Attributes:
        config: of its base.
        base: by what name the base is known; adapters with the same one can share it. None where it has none.
        lora: of the adapter that it comes with; None without one.
        quantized: whether that adapter goes with a base in 4 bit, or the model is in 4 bit.
        tokenizer: what its tokenizer is loaded from; None where it has none.
    """

    config: PretrainedConfig
    base: str | None = None
    lora: LoraConfig | None = None
    quantized: bool = False
    tokenizer: Any = None


def origin_of(given: Any, trust_remote_code: bool, made: Mapping[str, Origin]) -> Origin:
    """What is known of a model.

    Args:
        given: a path or hub id of a model or adapter, a config, or a loaded model.
        trust_remote_code: run code that comes with it.
        made: models that are not there yet, by path.

    Raises:
        ModelError: there is no such model.
    """
    if isinstance(given, PretrainedConfig):
        return Origin(given)
    if isinstance(given, (PreTrainedModel, PeftModel)):
        lora = given.peft_config[given.active_adapter] if isinstance(given, PeftModel) else None
        quantized = bool(getattr(given, "is_loaded_in_4bit", False))
        return Origin(given.config, getattr(given, "name_or_path", None) or None, lora, quantized, given)
    name = str(given)
    if name in made:
        return made[name]
    folder = Path(name)
    if not (folder / "adapter_config.json").is_file():
        return Origin(_config_of(name, trust_remote_code), name, tokenizer=name)
    record, base = folder / RUN_FILE, base_of(folder)
    quantized = record.is_file() and json.loads(record.read_text()).get("adapter") == "qlora"
    config = _config_of(base, trust_remote_code)
    return Origin(config, base, LoraConfig.from_pretrained(name), quantized, tokenizer=name)


def _config_of(name: str, trust_remote_code: bool) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(why_not_loaded(name, error, "model")) from error
