"""`prefopt export`."""

import numpy as np
import torch

from prefopt.core.errors import ModelError, UsageError
from prefopt.core.micro_batch import PaddedRows
from prefopt.models import export_merged, is_classifier, load_tokenizer
from prefopt.models.export import DTYPES
from prefopt.rewards.reward_model import RewardModel
from prefopt.rollouts import GenerationSettings, TransformersGenerator
from prefopt.scoring import score

SAMPLES, TOKENS = 8, 64
TOLERANCE = 0.1
"""Nats a token, on average, by which a merged model may differ from the trained one; bfloat16 rounds to about 0.01."""


def run_export(adapter: str, out: str, dtype: str) -> None:
    """Merge, write, and print how far the merged model is from the trained one: its log-probs, or its rewards."""
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype} is not one of {', '.join(DTYPES)}.")
    trained, merged = export_merged(adapter, out, dtype=dtype)
    tokenizer = load_tokenizer(adapter)
    if is_classifier(merged.config):
        gap, what, unit = reward_gap(trained, merged, tokenizer), "rewards of {} random sequences", ""
    else:
        gap, what = log_prob_gap(trained, merged, tokenizer), "log-probs of {} tokens sampled from the trained model"
        unit = " nats"
    print(
        f"{what.format(len(gap))}, merged against trained: mean absolute difference {gap.mean():.2g}, "
        f"largest {gap.max():.2g}{unit}"
    )
    if not is_classifier(merged.config) and not gap.mean() < TOLERANCE:
        raise ModelError(
            f"{out} is another model than was trained: their log-probs differ by {gap.mean():.2g} nats a token, more "
            f"than rounding to {dtype} explains."
        )
    print(f"saved to {out} ({dtype})")


def reward_gap(trained: torch.nn.Module, merged: torch.nn.Module, tokenizer: object) -> np.ndarray:
    """|r_merged − r_trained| of sequences of random tokens."""
    rows = list(np.random.default_rng(0).integers(len(tokenizer), size=(SAMPLES, TOKENS)))
    one, other = (np.array(RewardModel(model, tokenizer).score(rows)) for model in (trained, merged))
    return np.abs(other - one)


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
        completion = torch.arange(ids.shape[1])[None] > 0
        padded = PaddedRows(input_ids=ids, attention_mask=torch.ones_like(ids), completion_mask=completion)
        gaps.append((score(merged, padded)["logps"] - score(trained, padded)["logps"]).abs())
    return torch.cat(gaps).numpy()
