"""Merge an adapter into its base and write a plain 16-bit model."""

from pathlib import Path

import torch
from peft import PeftModel

from prefopt.errors import ModelError
from prefopt.models.load import ModelSettings, _base_of, load_causal_lm, load_tokenizer

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def export_merged(
    adapter: str | Path, out: str | Path, *, dtype: str = "bfloat16"
) -> tuple[PeftModel, torch.nn.Module]:
    """Write ``base + adapter`` as one model that any tool can load.

    The adapter is merged in float32 into the base in full precision, also where it was trained on a quantized base,
    and rounded to ``dtype`` once, at the end.

    Args:
        adapter: folder of a trained adapter.
        out: folder to write to.
        dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``.

    Returns:
        The model with its adapter as trained (float32), and the merged one as written, for comparison.

    Raises:
        ModelError: the folder holds no adapter, or the adapter has no tokenizer and its base neither.
    """
    folder = Path(adapter)
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} holds no adapter (adapter_config.json is missing): there is nothing to merge.")
    settings = ModelSettings(dtype=torch.float32)

    def load() -> PeftModel:
        base = load_causal_lm(_base_of(folder), settings, trains_adapter=True)
        return PeftModel.from_pretrained(base, str(folder)).eval()

    merged = load().merge_and_unload().to(DTYPES[dtype])
    merged.save_pretrained(str(out))
    load_tokenizer(folder).save_pretrained(str(out))
    return load(), merged
