"""What a model and its tokenizer must be for a run: asked when the trainer is assembled, not at its first step."""

from collections.abc import Iterable
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from prefopt.core.errors import ModelError, UsageError
from prefopt.models.adapters import is_adapter_model

HALF = (torch.bfloat16, torch.float16)
_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "CPT", "ADAPTION_PROMPT")


def check_architecture(config: PretrainedConfig, name: str) -> None:
    """Refuse a model that does not write from left to right.

    Raises:
        ModelError: an encoder–decoder, or an encoder.
    """
    text = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name} is an encoder–decoder ({config.model_type}): prefopt trains decoders, such as Llama or Qwen."
        )
    if text.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(text, "is_decoder", False):
        raise ModelError(
            f"{name} is an encoder ({text.model_type}), whose tokens see those after them: prefopt trains decoders, "
            "such as Llama or Qwen."
        )


def check_object(model: nn.Module, *, rewards: bool, adapter: Any) -> None:
    """Refuse a loaded model that is of another kind than is trained.

    Args:
        model: a transformers or peft model.
        rewards: whether a reward model is trained.
        adapter: the setting of that name.

    Raises:
        ModelError: a classifier or a model without a vocabulary head where a language model is needed, or an adapter
            that adds tokens and changes no layer.
        UsageError: the settings of an adapter beside a model that brings one.
    """
    if isinstance(model, PeftModel):
        kind = getattr(model.peft_config[model.active_adapter].peft_type, "value", "")
        check_adapter_kind(kind, "the model's adapter")
        if isinstance(adapter, LoraConfig):
            raise UsageError(
                "the model brings an adapter of its own, which is trained further: leave adapter= out, or pass "
                "model.merge_and_unload()."
            )
    if rewards:
        return
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if "Classification" in type(base).__name__ or "QuestionAnswering" in type(base).__name__:
        raise ModelError(f"{type(base).__name__} is a classifier, and no language model: load AutoModelForCausalLM.")
    if base.get_output_embeddings() is None:
        raise ModelError(f"{type(base).__name__} has no vocabulary head: load the model with AutoModelForCausalLM.")


def check_adapter_kind(kind: str, name: str) -> None:
    """Refuse an adapter that changes no layer, or that needs a training loop of its own.

    Raises:
        ModelError: it does.
    """
    if kind in _PROMPTS:
        raise ModelError(
            f"{name} is of the kind {kind}, which puts tokens of its own before the prompt: prefopt trains adapters "
            "that change layers, such as LoRA."
        )
    if kind == "ADALORA":
        raise ModelError(f"{name} is an AdaLoRA, whose ranks need a training loop of its own: use LoRA.")


def check_adapter_setting(adapter: Any, lora: dict[str, Any]) -> None:
    """Refuse settings of an adapter that would be ignored.

    Raises:
        UsageError: ``lora`` without ``adapter``, or beside a ``LoraConfig``; or an AdaLoRA.
    """
    if isinstance(adapter, AdaLoraConfig):
        check_adapter_kind("ADALORA", "adapter=")
    if lora and adapter is None:
        raise UsageError("lora= would have no effect without an adapter: add adapter='lora' or 'qlora'.")
    if lora and isinstance(adapter, LoraConfig):
        raise UsageError("lora= would have no effect beside a LoraConfig: set these fields in adapter= itself.")


def check_trains(policy: nn.Module) -> None:
    """Refuse a model of which nothing is trained.

    Raises:
        UsageError: all of its weights are frozen.
    """
    if any(weight.requires_grad for weight in policy.parameters()):
        return
    remedy = "model.requires_grad_(True), or adapter='lora'"
    if is_adapter_model(policy):
        remedy = "load it with PeftModel.from_pretrained(base, folder, is_trainable=True)"
    raise UsageError(f"all weights of the model are frozen, so nothing would be trained: {remedy}.")


def train_in_float32(policy: nn.Module, *, mixed: bool) -> str:
    """Train in float32 what arrives in half precision, in which small steps are rounded away.

    Args:
        policy: the model, with its adapter if it has one.
        mixed: whether mixed precision computes in half precision all the same.

    Returns:
        What to say about it; empty where nothing had to change.
    """
    halves = {
        name: weight for name, weight in policy.named_parameters() if weight.requires_grad and weight.dtype in HALF
    }
    if not halves:
        return ""
    dtype = str(next(iter(halves.values())).dtype).removeprefix("torch.")
    layers = not isinstance(policy, PeftModel) or any("lora_" not in name for name in halves)
    quantized = getattr(policy, "is_quantized", False) or getattr(policy, "is_loaded_in_4bit", False)
    if layers and not mixed and not quantized:
        # Layers of two precisions would not fit together.
        policy.float()
    else:
        for weight in halves.values():
            weight.data = weight.data.float()
    return (
        f"the trained weights arrive in {dtype}, in which small steps are rounded away: they are trained and saved in "
        "float32"
    )


def check_tokens(tokenizer: PreTrainedTokenizerBase, numbers: Iterable[int], vocabulary: int, name: str) -> None:
    """Refuse token ids for which the model has no embedding.

    Args:
        tokenizer: the tokenizer.
        numbers: ids that the run uses.
        vocabulary: how many embeddings the model has.
        name: of what the ids are in.

    Raises:
        ModelError: an id is as large as that, or larger.
    """
    largest = max(numbers, default=0)
    if largest >= vocabulary:
        raise ModelError(
            f"{name}: the token {tokenizer.convert_ids_to_tokens(largest)!r} has the id {largest}, and the model has "
            f"{vocabulary} embeddings: call model.resize_token_embeddings(len(tokenizer)), or take the model's own "
            "tokenizer."
        )


def check_reference_tokens(
    tokenizer: PreTrainedTokenizerBase,
    other: PreTrainedTokenizerBase | None,
    policy: nn.Module,
    reference: nn.Module,
) -> None:
    """Refuse a reference that reads other tokens than the policy writes.

    Args:
        tokenizer: the policy's.
        other: the reference's, as far as it is known.
        policy, reference: the models.

    Raises:
        ModelError: an id is another token to the reference, or none.
    """
    rows, own = (model.get_input_embeddings().weight.shape[0] for model in (reference, policy))
    needed = min(len(tokenizer), own)
    if rows < needed:
        raise ModelError(
            f"the reference has {rows} embeddings, and the policy's tokenizer {needed} tokens: give a reference with "
            "the same tokenizer."
        )
    if other is None:
        return
    # Special tokens may have got other names in fine-tuning; their ids are what counts.
    renamed = {*tokenizer.added_tokens_decoder, *other.added_tokens_decoder}
    theirs = {number: token for token, number in other.get_vocab().items()}
    for token, number in tokenizer.get_vocab().items():
        if number not in renamed and theirs.get(number, token) != token:
            raise ModelError(
                f"the reference has another vocabulary than the policy (the id {number} is {token!r} to the policy and "
                f"{theirs[number]!r} to the reference), so its log-probs would mean nothing: give a reference with the "
                "same tokenizer."
            )


def balancing_line(config: PretrainedConfig, *, added: bool) -> str:
    """What to say about the load-balancing loss of a mixture of experts; empty for any other model.

    Args:
        config: of the model.
        added: whether the model computes it where its config asks for it, as language models do.
    """
    coefficient = balancing_coefficient(config)
    if coefficient is None:
        return ""
    if not added:
        return "this mixture of experts is trained without its load-balancing loss, which reward models do not compute"
    if balances(config):
        return f"the load-balancing loss of the experts is added with its coefficient {coefficient:g} (aux_loss)"
    return (
        "this mixture of experts is trained without its load-balancing loss: pass a model with "
        "config.output_router_logits=True to add it"
    )


def balancing_coefficient(config: PretrainedConfig) -> float | None:
    """What the load-balancing loss of a mixture of experts is multiplied by; None where the model has none."""
    return getattr(config.get_text_config(), "router_aux_loss_coef", None)


def balances(config: PretrainedConfig) -> bool:
    """Whether a model's config asks for the load-balancing loss of its experts."""
    return balancing_coefficient(config) is not None and bool(
        getattr(config.get_text_config(), "output_router_logits", False)
    )
