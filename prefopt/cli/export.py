"""`prefopt export`."""

import numpy as np
import torch

from prefopt.errors import UsageError
from prefopt.models import export_merged, load_tokenizer
from prefopt.models.export import DTYPES
from prefopt.rollouts import GenerationSettings, TransformersGenerator
from prefopt.scoring import Layout, score

SAMPLES, TOKENS = 8, 64


def run_export(adapter: str, out: str, dtype: str) -> None:
    """Merge, write, and print how far the merged model's log-probs are from the trained one's on its own samples."""
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype} is not one of {', '.join(DTYPES)}.")
    trained, merged = export_merged(adapter, out, dtype=dtype)
    gap = log_prob_gap(trained, merged, load_tokenizer(adapter))
    print(f"saved to {out} ({dtype})")
    print(
        f"log-probs of {len(gap)} tokens sampled from the trained model, merged against trained: "
        f"mean absolute difference {gap.mean():.2g}, largest {gap.max():.2g} nats"
    )


@torch.no_grad()
def log_prob_gap(trained: torch.nn.Module, merged: torch.nn.Module, tokenizer: object) -> np.ndarray:
    """|log π_merged − log π_trained| per token, in nats, on completions sampled from the trained model."""
    torch.manual_seed(0)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    settings = GenerationSettings(n=SAMPLES, max_new_tokens=TOKENS)
    groups = TransformersGenerator(tokenizer).generate(trained, [np.array([start], dtype=np.int32)], settings)
    gaps = []
    for sample in groups[0]:
        ids = torch.tensor([[start, *sample.ids.tolist()]])
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        layout = Layout.of(ids, torch.arange(ids.shape[1])[None] > 0)
        gaps.append((score(merged, batch, layout)["logps"] - score(trained, batch, layout)["logps"]).abs())
    return torch.cat(gaps).numpy()
