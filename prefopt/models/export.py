"""Merge an adapter into its base and write a plain 16-bit model."""

import json
from pathlib import Path

import torch
from peft import PeftModel

from prefopt.errors import ModelError
from prefopt.models.load import ModelSettings, base_of, load_causal_lm, load_tokenizer

RUN_FILE = "prefopt.json"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def export_merged(
    adapter: str | Path, out: str | Path, *, dtype: str = "bfloat16"
) -> tuple[PeftModel, torch.nn.Module]:
    """Write ``base + adapter`` as one model that any tool can load.

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
        ModelError: the folder holds no adapter, or that of a reward model; or neither it nor its base has a tokenizer.
    """
    folder = Path(adapter)
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} holds no adapter (adapter_config.json is missing): there is nothing to merge.")
    if json.loads((folder / "adapter_config.json").read_text()).get("task_type") == "SEQ_CLS":
        raise ModelError(
            f"{folder} is the adapter of a reward model, which is used as it is: only policies are merged."
        )
    record = folder / RUN_FILE
    quantized = record.is_file() and json.loads(record.read_text()).get("adapter") == "qlora"
    settings = ModelSettings(adapter="qlora" if quantized else None, dtype=torch.float32)
    base = load_causal_lm(base_of(folder), settings, trains_adapter=True)
    whole = base.dequantize() if quantized else base
    merged = PeftModel.from_pretrained(whole, str(folder)).merge_and_unload().to(DTYPES[dtype])
    merged.save_pretrained(str(out))
    load_tokenizer(folder).save_pretrained(str(out))
    trained = load_causal_lm(base_of(folder), settings, trains_adapter=True)
    return PeftModel.from_pretrained(trained, str(folder)).eval(), merged.eval()
