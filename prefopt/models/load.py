"""From a path, a hub id or a loaded model to the policy that is trained, and its tokenizer."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from prefopt.core.errors import ModelError, UsageError
from prefopt.core.settings import refuse_unknown
from prefopt.models.adapters import is_adapter_model
from prefopt.models.checks import check_adapter_kind, check_adapter_setting, check_architecture, check_object
from prefopt.models.precision import compute_dtype
from prefopt.models.reward_head import (
    HEAD,
    adapter_of_another_kind,
    check_labels,
    head_of,
    is_classifier,
    to_reward_model,
)
from prefopt.models.saved import SavedModel

ADAPTER_KINDS = (None, "lora", "qlora")
_BRINGS = "brings an adapter of its own, which is trained further: leave its settings out."


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """How a model is loaded.

    Attributes:
        adapter: None trains all weights; ``"lora"`` adds a LoRA to a frozen base; ``"qlora"`` also quantizes the base
            to 4-bit NF4 with double quantisation; a ``peft.LoraConfig`` is taken as it is.
        lora: fields of ``peft.LoraConfig`` that replace the defaults (r=16, lora_alpha=32, dropout 0, every linear
            layer but the head).
        dtype: of the weights. None means, of frozen ones under an adapter, bfloat16 where an accelerator computes in
            it, else float32; a model that is trained whole keeps its weights in float32.
        trust_remote_code: run code that comes with the model; off unless asked for.
        rewards: load a reward model, a sequence classifier with one label, instead of a language model.
    """

    adapter: str | LoraConfig | None = None
    lora: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    trust_remote_code: bool = False
    rewards: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.adapter, LoraConfig) and self.adapter not in ADAPTER_KINDS:
            raise UsageError(f"adapter={self.adapter!r} is not one of None, 'lora', 'qlora' or a peft.LoraConfig.")
        refuse_unknown("lora", self.lora, LoraConfig.__dataclass_fields__, see="peft.LoraConfig")
        if self.rewards and isinstance(self.adapter, LoraConfig) and self.adapter.task_type != "SEQ_CLS":
            raise UsageError("a reward model needs its head saved with the adapter: set task_type='SEQ_CLS' in it.")

    @property
    def quantize(self) -> bool:
        return self.adapter == "qlora"

    def lora_config(self) -> LoraConfig:
        if isinstance(self.adapter, LoraConfig):
            return self.adapter
        defaults = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
        return LoraConfig(task_type="SEQ_CLS" if self.rewards else "CAUSAL_LM", **(defaults | self.lora))

    def weight_dtype(self, trains_adapter: bool) -> torch.dtype:
        return self.dtype or (compute_dtype() if trains_adapter else torch.float32)


def load_policy(model: str | Path | PreTrainedModel | PeftModel, settings: ModelSettings) -> nn.Module:
    """The model to train, with its adapter where one is asked for or came along.

    A model that arrives with an adapter keeps training that adapter; asking for ``"lora"`` or ``"qlora"`` then says
    only how its base is loaded.

    Raises:
        ModelError: no such model, or an adapter whose base cannot be found.
        UsageError: settings that contradict the model (quantizing one that is loaded already, for instance).
    """
    if isinstance(model, (str, Path)):
        policy = load_by_name(str(model), settings)
    else:
        check_model(model, settings)
        policy = to_reward_model(model) if settings.rewards else model
    if settings.adapter is not None and not is_adapter_model(policy):
        policy = get_peft_model(policy, settings.lora_config())
    if not is_adapter_model(policy) and getattr(policy, "is_quantized", False):
        raise UsageError("a quantized model cannot be trained whole: choose adapter='qlora'.")
    disable_dropout(policy)
    return policy


def check_model(model: str | Path | PreTrainedModel | PeftModel, settings: ModelSettings) -> None:
    """Refuse what cannot be, as far as it is known without weights.

    Raises:
        UsageError, ModelError: See `load_policy`.
    """
    if isinstance(model, (PreTrainedModel, PeftModel)):
        if isinstance(model, PeftModel) and settings.lora:
            raise UsageError(f"the model {_BRINGS}")
        check_adapter_setting(settings.adapter, settings.lora)
        check_architecture(model.config, type(model).__name__)
        check_object(model, rewards=settings.rewards, adapter=settings.adapter)
        if settings.quantize and not getattr(model, "is_loaded_in_4bit", False):
            raise UsageError("adapter='qlora' cannot quantize a model that is loaded already: pass its path instead.")
        return
    if not isinstance(model, (str, Path)):
        raise UsageError(f"model must be a path, a hub id or a transformers model, not {type(model).__name__}.")
    saved = SavedModel.of(model)
    if saved.is_adapter and (isinstance(settings.adapter, LoraConfig) or settings.lora):
        raise UsageError(f"{model} {_BRINGS}")
    check_adapter_setting(settings.adapter, settings.lora)
    if not saved.is_adapter:
        return
    check_adapter_kind(saved.adapter.get("peft_type", ""), str(model))
    if settings.rewards and not saved.rewards:
        raise ModelError(adapter_of_another_kind(str(model)))
    if saved.rewards and not settings.rewards:
        raise ModelError(f"{model} is the adapter of a reward model, and no language model: give its base instead.")


def load_tokenizer(model: str | Path | nn.Module, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a model, with a padding token.

    Raises:
        ModelError: none was found, or it has no end-of-sequence token.
    """
    name = str(model) if isinstance(model, (str, Path)) else model.config._name_or_path
    if not name:
        raise ModelError("the model was made without a name, so its tokenizer is not known: pass processing_class=.")
    folder = Path(name)
    if not (folder / "tokenizer_config.json").is_file():
        name = SavedModel.of(name).base
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(model, (str, Path)) and not Path(name).is_dir():
            raise ModelError(
                f"no tokenizer of {name!r} was found: there is no such folder, nor such a model with one on the hub "
                "(which may be out of reach): check the name."
            ) from error
        raise ModelError(
            f"no tokenizer could be loaded from {name!r}: pass processing_class= (a tokenizer), or put its files "
            "beside the model."
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {name!r} has no end-of-sequence token; set tokenizer.eos_token.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(name: str, settings: ModelSettings, *, trains_adapter: bool) -> PreTrainedModel:
    """Load a base model by path or hub id, quantized to 4 bit where the settings say so.

    Raises:
        ModelError: the path does not exist and no hub has the name, or the files are not a causal language model.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(name, **_options(settings, trains_adapter))
    except (OSError, ValueError) as error:
        raise ModelError(why_not_loaded(name, error)) from error
    if is_classifier(model.config):
        raise ModelError(
            f"{name} is a classifier, such as a reward model, and no language model: give its base instead."
        )
    return _keep_precision(model)


def load_reward_model(name: str, settings: ModelSettings, *, trains_adapter: bool) -> PreTrainedModel:
    """The same for a reward model; a language model gets a fresh head.

    Raises:
        ModelError: no such model, or one that cannot give one number for a sequence.
    """
    options = _options(settings, trains_adapter)
    try:
        check_labels(name, AutoConfig.from_pretrained(name, trust_remote_code=settings.trust_remote_code))
        with _quietly():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                name, num_labels=1, output_loading_info=True, **options
            )
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(why_not_loaded(name, error, "sequence classifier")) from error
    missing = set(report["missing_keys"])
    fresh = any(key.split(".")[0] == HEAD for key in missing)
    missing -= {key for key in missing if key.split(".")[0] == HEAD}
    borrows = missing and all("embed" in key or "wte" in key for key in missing)
    if borrows:
        _borrow_embeddings(model, name, settings)
    elif missing:
        raise ModelError(f"{name} lacks the weights {', '.join(sorted(missing)[:3])}: its files are not complete.")
    model = to_reward_model(model, fresh=fresh)
    head_of(model).borrows = bool(borrows)
    return _keep_precision(model)


def _borrow_embeddings(model: PreTrainedModel, name: str, settings: ModelSettings) -> None:
    """Take tied embeddings that a checkpoint stores under the language model's head, where a classifier has no name
    for them; transformers would leave them random."""
    own = model.get_input_embeddings().weight
    options = {"dtype": own.dtype, "trust_remote_code": settings.trust_remote_code}
    whole = AutoModelForCausalLM.from_pretrained(name, **options)
    with torch.no_grad():
        own.copy_(whole.get_input_embeddings().weight)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the report that the head is new and the language model's is not used: that is the point."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _options(settings: ModelSettings, trains_adapter: bool) -> dict[str, Any]:
    dtype = settings.weight_dtype(trains_adapter)
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": settings.trust_remote_code}
    if settings.quantize:
        options["quantization_config"] = quantization(dtype)
        if torch.cuda.is_available():
            options["device_map"] = {"": torch.cuda.current_device()}
    return options


def quantization(dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit NF4 with double quantisation, computing in ``dtype``."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=torch.uint8,
    )


def _keep_precision(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On such CPUs bitsandbytes repacks 4-bit weights, for good and with less precision, as soon as it sees
            # evaluation mode. Policy and reference would then disagree by more than they ever should.
            module.support_avx512bf16_for_cpu = False
    return model


def load_by_name(name: str, settings: ModelSettings) -> nn.Module:
    """Load a model by path or hub id; the folder of an adapter gives that adapter on the base that it names.

    Raises:
        ModelError: there is no such model, or it is of another kind than is needed.
        UsageError: an adapter is to be made anew on a model that brings one.
    """
    check_model(name, settings)
    saved = SavedModel.of(name)
    if not saved.is_adapter:
        load_base = load_reward_model if settings.rewards else load_causal_lm
        return load_base(name, settings, trains_adapter=settings.adapter is not None)
    model = PeftModel.from_pretrained(load_base_of(saved, settings), name, is_trainable=True)
    if settings.rewards:
        head_of(model).fresh = False
    return model


def load_base_of(saved: SavedModel, settings: ModelSettings) -> PreTrainedModel:
    """The base of an adapter, with as many embeddings as the adapter was trained with.

    Raises:
        ModelError: there is no such model, or it is of another kind than is needed.
    """
    base = (load_reward_model if settings.rewards else load_causal_lm)(saved.base, settings, trains_adapter=True)
    rows = saved.vocabulary
    if rows is not None and rows != base.get_input_embeddings().weight.shape[0]:
        # The rows of added tokens come with the adapter.
        base.resize_token_embeddings(rows, mean_resizing=False)
    return base


def load_trained(name: str, *, trust_remote_code: bool = False) -> nn.Module:
    """A language model as it was trained, frozen, on the accelerator if there is one: an adapter on a quantized base
    gets that base.

    Raises:
        ModelError: no such model, or a reward model.
    """
    quantized = SavedModel.of(name).quantized
    adapter = "qlora" if quantized else None
    settings = ModelSettings(adapter=adapter, dtype=compute_dtype(), trust_remote_code=trust_remote_code)
    model = load_policy(name, settings)
    if torch.cuda.is_available() and not quantized:
        model.to("cuda")
    return model.eval().requires_grad_(False)


def why_not_loaded(name: str, error: Exception, what: str = "causal language model") -> str:
    """A message about a model that could not be loaded by its path or hub id."""
    folder = Path(name)
    if folder.is_dir():
        reason = str(error).strip().splitlines()[0]
        return f"{name} is a folder, but not a {what} that transformers can load: {reason}"
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_path:
        return f"model {name!r} does not exist: there is no such folder."
    return f"model {name!r} was found neither as a folder nor on the hub (which may be out of reach): check the name."


def disable_dropout(model: nn.Module) -> None:
    """Turn dropout off in everything but adapters: reference and policy must agree wherever their weights do."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and "lora_dropout" not in name:
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
