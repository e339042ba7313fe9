"""Merge an adapter into its base and write a plain 16-bit model."""

import json
from pathlib import Path

import torch
from peft import PeftModel

from prefopt.core.errors import ModelError
from prefopt.models.load import ModelSettings, base_of, load_causal_lm, load_reward_model, load_tokenizer
from prefopt.models.reward_head import settle_padding

RUN_FILE = "prefopt.json"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def export_merged(
    adapter: str | Path, out: str | Path, *, dtype: str = "bfloat16"
) -> tuple[PeftModel, torch.nn.Module]:
    """Write ``base + adapter`` as one model that any tool can load: a language model, or a reward model with its head.

    An adapter that was trained on a quantized base (its ``prefopt.json`` says so) is merged into that base
    dequantized, because it has learnt to make up for the quantisation; any other into its base in full precision.
    The sum is taken in float32 and rounded to ``dtype`` once, at the end.

    Args:
        adapter: folder of a trained adapter.
        out: folder to write to.
        dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``.

    Returns:
        The model as trained (its base as it was in training), and the merged one as written, for comparison.

    Raises:
        ModelError: the folder holds no adapter; or neither it nor its base has a tokenizer.
    """
    folder = Path(adapter)
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} holds no adapter (adapter_config.json is missing): there is nothing to merge.")
    rewards = json.loads((folder / "adapter_config.json").read_text()).get("task_type") == "SEQ_CLS"
    load_base = load_reward_model if rewards else load_causal_lm
    record = folder / RUN_FILE
    quantized = record.is_file() and json.loads(record.read_text()).get("adapter") == "qlora"
    settings = ModelSettings(adapter="qlora" if quantized else None, dtype=torch.float32, rewards=rewards)
    base = load_base(base_of(folder), settings, trains_adapter=True)
    whole = base.dequantize() if quantized else base
    adapted, tokenizer = PeftModel.from_pretrained(whole, str(folder)), load_tokenizer(folder)
    if rewards:
        tokenizer, _ = settle_padding(adapted, tokenizer)
    merged = adapted.merge_and_unload().to(DTYPES[dtype])
    merged.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    trained = PeftModel.from_pretrained(load_base(base_of(folder), settings, trains_adapter=True), str(folder))
    return trained.eval(), merged.eval()
