"""What is known of a model before its weights are loaded, or before there are any."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftModel
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from prefopt.core.errors import ModelError
from prefopt.models.load import why_not_loaded
from prefopt.models.saved import SavedModel


@dataclass(frozen=True)
class Origin:
    """A model that is named, given, or will be made by an earlier stage.

    Attributes:
        config: The config of its base.
        base: The name of the base; adapters with the same one can share it. None where it has none.
        lora: The settings of the adapter that it comes with; None without one.
        quantized: True for an adapter whose base is in 4 bit, and for a model in 4 bit.
        tokenizer: The source of its tokenizer; None where it has none.
        embeddings: The embeddings that an adapter brings, where it brings others than its base has.
    """

    config: PretrainedConfig
    base: str | None = None
    lora: LoraConfig | None = None
    quantized: bool = False
    tokenizer: Any = None
    embeddings: int | None = None

    @property
    def context(self) -> int | None:
        """The tokens that the model can read; None where its config does not say."""
        return context_of(self.config)

    @property
    def vocabulary(self) -> int | None:
        """The tokens for which the model has an embedding; None where that is not known."""
        if isinstance(self.tokenizer, (PreTrainedModel, PeftModel)):
            return self.tokenizer.get_input_embeddings().weight.shape[0]
        return self.embeddings or getattr(self.config.get_text_config(), "vocab_size", None)


def context_of(config: PretrainedConfig) -> int | None:
    """The tokens that a model can read; None where its config does not say."""
    # A model of several modalities says it of its text part.
    text = config.get_text_config()
    known = (getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((limit for limit in known if isinstance(limit, int) and limit > 0), None)


def origin_of(given: Any, trust_remote_code: bool = False, made: Mapping[str, Origin] | None = None) -> Origin:
    """What is known of a model.

    Args:
        given: A path or hub id of a model or adapter, a config, or a loaded model.
        trust_remote_code: Permission to run code that comes with it.
        made: Models that are not there yet, by path.

    Raises:
        ModelError: There is no such model.
    """
    if isinstance(given, PretrainedConfig):
        return Origin(given)
    if isinstance(given, (PreTrainedModel, PeftModel)):
        lora = given.peft_config[given.active_adapter] if isinstance(given, PeftModel) else None
        quantized = bool(getattr(given, "is_loaded_in_4bit", False))
        return Origin(given.config, getattr(given, "name_or_path", None) or None, lora, quantized, given)
    name = str(given)
    if made and name in made:
        return made[name]
    saved = SavedModel.of(name)
    if not saved.is_adapter:
        return Origin(_config_of(name, trust_remote_code), name, tokenizer=name)
    config = _config_of(saved.base, trust_remote_code)
    lora = LoraConfig.from_pretrained(name)
    return Origin(config, saved.base, lora, saved.quantized, tokenizer=name, embeddings=saved.vocabulary)


def _config_of(name: str, trust_remote_code: bool) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(why_not_loaded(name, error, "model")) from error
