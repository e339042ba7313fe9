"""Ways of sampling completions: prompts together or one by one, their cache shared or not, continuous batching.

    python benchmarks/sampling.py              # about 4 minutes on two CPU cores

The model and the prompts are those of ``rollouts.py``. All ways sample the same number of completions of the same
prompts; rounds are interleaved, minima are compared. Results go to ``benchmarks/results/sampling.json``.
"""

import argparse
import json
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import record
import rollouts
import torch
import words
from transformers import GenerationConfig
from transformers.utils import logging

from prefopt.rollouts import GenerationSettings, TransformersGenerator, kv_cache

HERE = Path(__file__).parent


def ways(rounds: int) -> dict[str, float]:
    """Seconds by way; the minimum over interleaved rounds."""
    model, tokenizer = rollouts.base().eval(), words.tokenizer(rollouts.VOCABULARY)
    ids = [np.array(tokenizer(text).input_ids, dtype=np.int32) for text in rollouts.prompts()]
    settings = GenerationSettings(n=rollouts.N, max_new_tokens=rollouts.NEW, batch_size=rollouts.PROMPTS * rollouts.N)
    makes = TransformersGenerator(tokenizer)

    def together() -> None:
        makes.generate(model, ids, settings)

    def without_cache() -> None:
        with patch.object(kv_cache, "keeps_all", lambda model: False):
            makes.generate(model, ids, settings)

    def one_by_one() -> None:
        for prompt in ids:
            makes.generate(model, [prompt], settings)

    def continuous() -> None:
        config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=rollouts.NEW, eos_token_id=2, pad_token_id=0)
        inputs = [prompt.tolist() for prompt in ids for _ in range(rollouts.N)]
        model.generate_batch(inputs=inputs, generation_config=config)

    best: dict[str, float] = {}
    for _ in range(rounds):
        for way in (together, without_cache, one_by_one, continuous):
            torch.manual_seed(0)
            began = time.perf_counter()
            way()
            best[way.__name__] = min(best.get(way.__name__, float("inf")), time.perf_counter() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sampling.json")
    chosen = parser.parse_args()
    logging.set_verbosity_error()
    seconds = ways(chosen.rounds)
    print(json.dumps(seconds, indent=2))
    setting = (
        f"hidden {rollouts.HIDDEN}, {rollouts.LAYERS} layers, vocabulary {rollouts.VOCABULARY}, float32; "
        f"{rollouts.PROMPTS} prompts of up to {rollouts.LENGTH} tokens × {rollouts.N} samples of up to "
        f"{rollouts.NEW}; fastest of {chosen.rounds} rounds"
    )
    record.write(chosen.out, "python benchmarks/sampling.py", setting, seconds=seconds)


if __name__ == "__main__":
    main()
