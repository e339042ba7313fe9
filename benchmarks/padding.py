"""Rows of different lengths on models that cannot share prompts: padded to one length, or sorted in several passes.

    python benchmarks/padding.py DATA            # about 5 minutes on one CPU core

DATA is a file of pairs that `prefopt train dpo` reads, tokenized as by `lengths.py`. In micro-batches of 1, 4 and 8
pairs in a shuffled order: positions a pair that a model of each kind sees, over all of the file; and seconds a pair,
forward and backward through ``score``, of small models with random weights (hidden 256, 4 layers, vocabulary 8,000,
full fine-tune, float32), both ways interleaved, the fastest round of each micro-batch. Jamba, whose time in plain torch
grows with the square of the length, only where it is asked for.

Results go to ``benchmarks/results/padding.json``.
"""

import argparse
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import record
import torch
from lengths import BATCHES, batches_of, pairs_of
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from prefopt.core.micro_batch import PaddedRows
from prefopt.data import TokenizedDataset, collate
from prefopt.scoring import in_parts, score, share_prompts

HERE = Path(__file__).parent
SIZES = {
    "vocab_size": 8_000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_state": 16}
KINDS: dict[str, dict[str, Any]] = {
    "bloom": {"n_head": 4, "n_layer": 4},
    "falcon": {},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "jamba": {"mamba_d_state": 8, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {**_MAMBA_2, "mamba_d_head": 64, "attn_layer_indices": [1, 3]},
    "falcon_h1": {**_MAMBA_2, "mamba_d_head": 32, "mamba_d_ssm": 256},
    "qwen3_next": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
        "head_dim": 64,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
}
WAYS = ("padded", "sorted")


def models_of(kind: str) -> dict[str, nn.Module]:
    """The same model for both ways."""
    models = {}
    for way in WAYS:
        torch.manual_seed(0)
        models[way] = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**SIZES, **KINDS[kind]})).train()
    share_prompts(models["padded"], on=False)
    return models


def collated(dataset: TokenizedDataset, size: int) -> list[PaddedRows]:
    return [collate(batch).rows for batch in batches_of(dataset, size)]


def positions(models: dict[str, nn.Module], batches: list[PaddedRows], size: int) -> dict[str, float]:
    """A pair's, on average."""
    found = {}
    for way, model in models.items():
        total = sum(part.inputs["input_ids"].numel() for batch in batches for part in in_parts(model, batch))
        found[way] = total / (len(batches) * size)
    return found


def seconds(models: dict[str, nn.Module], batches: list[PaddedRows], size: int, rounds: int) -> dict[str, float]:
    """A pair's, forward and backward."""
    best = {(way, i): float("inf") for way in WAYS for i in range(len(batches))}
    for _ in range(rounds):
        for number, batch in enumerate(batches):
            for way, model in models.items():
                model.zero_grad()
                began = time.perf_counter()
                score(model, batch)["logps"].sum().backward()
                best[way, number] = min(best[way, number], time.perf_counter() - began)
    return {way: sum(best[way, i] for i in range(len(batches))) / (len(batches) * size) for way in WAYS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a file of pairs")
    parser.add_argument("--max-length", type=int, default=768, help="longer rows are left out, in tokens")
    parser.add_argument("--pairs", type=int, default=8, help="pairs that are timed")
    parser.add_argument("--rounds", type=int, default=2, help="of which the fastest counts")
    parser.add_argument("--kinds", nargs="+", default=[kind for kind in KINDS if kind != "jamba"], choices=KINDS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "padding.json")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    dataset = pairs_of(chosen.data, chosen.max_length)
    rows = []
    print(f"{'':12}{'batch':>6}{'positions a pair':>20}{'':6}{'seconds a pair':>20}")
    for kind in chosen.kinds:
        models = models_of(kind)
        for size in BATCHES:
            batches = collated(dataset, size)
            places = positions(models, batches, size)
            times = seconds(models, batches[: chosen.pairs // size], size, chosen.rounds)
            gain = {"positions": places["padded"] / places["sorted"], "seconds": times["padded"] / times["sorted"]}
            rows.append({"kind": kind, "batch": size, "positions": places, "seconds": times, "gain": gain})
            print(
                f"{kind:12}{size:6}{places['padded']:10.0f}{places['sorted']:10.0f}{gain['positions']:6.2f}"
                f"{times['padded']:10.3f}{times['sorted']:10.3f}{gain['seconds']:6.2f}",
                flush=True,
            )
    setting = (
        f"{len(dataset)} pairs of up to {chosen.max_length} tokens, byte-pair encoding of 8,000 tokens trained on the "
        f"file; hidden {SIZES['hidden_size']}, {SIZES['num_hidden_layers']} layers, vocabulary {SIZES['vocab_size']}, "
        f"full fine-tune, float32; {chosen.pairs} pairs timed, best of {chosen.rounds} interleaved rounds"
    )
    record.write(chosen.out, "python benchmarks/padding.py DATA", setting, file=chosen.data.name, results=rows)


if __name__ == "__main__":
    main()
