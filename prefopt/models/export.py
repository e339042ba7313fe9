"""Merge an adapter into its base and write a plain 16-bit model."""

from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from prefopt.core.errors import ModelError
from prefopt.models.checks import check_adapter_kind
from prefopt.models.generation import take_generation_config
from prefopt.models.load import ModelSettings, load_base_of, load_causal_lm, load_reward_model, load_tokenizer
from prefopt.models.reward_head import settle_padding
from prefopt.models.saved import SavedModel

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def export_merged(
    adapter: str | Path, out: str | Path, *, dtype: str = "bfloat16"
) -> tuple[PeftModel, torch.nn.Module]:
    """Write ``base + adapter`` as one model that any tool can load: a language model, or a reward model with its head.

    An adapter that was trained on a quantized base (its ``prefopt.json`` says so) is merged into that base
    dequantized, because it has learnt to make up for the quantisation; any other into its base in full precision.
    The sum is taken in float32 and rounded to ``dtype`` once, at the end. Where the embeddings and the vocabulary head
    are one weight and the adapter changes one of them, they are two in the written model.

    Args:
        adapter: folder of a trained adapter.
        out: folder to write to.
        dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``.

    Returns:
        The model as trained (its base as it was in training), and the merged one, read from ``out``, for comparison.

    Raises:
        ModelError: the folder holds no adapter; or neither it nor its base has a tokenizer.
    """
    saved = SavedModel.of(adapter)
    if not saved.is_adapter:
        raise ModelError(f"{adapter} holds no adapter (adapter_config.json is missing): there is nothing to merge.")
    check_adapter_kind(saved.adapter.get("peft_type", ""), saved.name)
    settings = ModelSettings(adapter="qlora" if saved.quantized else None, dtype=torch.float32, rewards=saved.rewards)
    base = load_base_of(saved, settings)
    whole = base.dequantize() if saved.quantized else base
    tied = _untie(whole)
    adapted, tokenizer = PeftModel.from_pretrained(whole, saved.name), load_tokenizer(saved.name)
    if saved.rewards:
        tokenizer, _ = settle_padding(adapted, tokenizer)
    merged = adapted.merge_and_unload()
    if tied:
        _tie_again(merged)
    if not saved.rewards:
        take_generation_config(merged, saved.name)
    merged.to(DTYPES[dtype]).save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    del merged, adapted, whole, base
    load = load_reward_model if saved.rewards else load_causal_lm
    written = load(str(out), ModelSettings(dtype=DTYPES[dtype], rewards=saved.rewards), trains_adapter=False)
    trained = PeftModel.from_pretrained(load_base_of(saved, settings), saved.name)
    return trained.eval(), written.eval()


def _untie(model: nn.Module) -> bool:
    """Give the vocabulary head a weight of its own where it is that of the embeddings: what an adapter adds to one of
    them must not reach the other."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return False
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    _set_tied(model, False)
    return True


def _tie_again(model: nn.Module) -> None:
    """Make one weight of the two where they are equal after all."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if torch.equal(head.weight, embeddings.weight):
        _set_tied(model, True)
        model.tie_weights()


def _set_tied(model: nn.Module, tied: bool) -> None:
    for config in {id(one): one for one in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = tied
