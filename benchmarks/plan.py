"""What `prefopt plan` predicts, against what training then holds.

    python benchmarks/plan.py                  # a few minutes on a CPU, less on a GPU
    python benchmarks/plan.py --only dpo-lora ppo-lora

Every case is a run of a few steps in a process of its own, on a model made from a config with random weights. On a CPU
the measured peak is that of all tensors alive, operation by operation (`prefopt.memory.recorder`): the size of a
process says more about its allocator than about its tensors. Scratch space inside of kernels is not in it. On a GPU it
is ``torch.cuda.max_memory_allocated``, and the models are larger. ``error`` is predicted / measured − 1.

Results go to ``benchmarks/results/plan.json``.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
import words
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt import Trainer, get_algorithm
from prefopt.core import console
from prefopt.memory import plan
from prefopt.memory.recorder import Recorder

HERE = Path(__file__).parent
CUDA = torch.cuda.is_available()
VOCABULARY = 32_000
SHAPE = {"hidden_size": 2048, "num_hidden_layers": 16} if CUDA else {"hidden_size": 256, "num_hidden_layers": 6}
PROMPT, COMPLETION = (1024, 512) if CUDA else (192, 96)
ROWS = 16


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        name: of the case.
        algorithm: what is trained.
        adapter: as in `prefopt.Trainer`.
        checkpointing: whether layers are run again in the backward pass.
        micro_batch, accumulation: examples of a micro-batch, and micro-batches of a step.
        even: whether all rows are equally long; else from a tenth of the length on.
        hyperparameters: of the algorithm.
        options: further arguments of the trainer and of the plan.
    """

    name: str
    algorithm: str
    adapter: str | None = None
    checkpointing: bool = False
    micro_batch: int = 4
    accumulation: int = 2
    even: bool = True
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def online(self) -> bool:
        return get_algorithm(self.algorithm).online


SAMPLED = {"generation": {"n": 4, "max_new_tokens": COMPLETION, "batch_size": 16}}
CASES = [
    Case("dpo-full", "dpo"),
    Case("dpo-full-checkpointing", "dpo", checkpointing=True),
    Case("dpo-full-no-accumulation", "dpo", micro_batch=2, accumulation=1),
    Case("dpo-lora", "dpo", "lora"),
    Case("dpo-lora-checkpointing", "dpo", "lora", checkpointing=True),
    Case("dpo-lora-varied", "dpo", "lora", even=False),
    Case("dpo-qlora", "dpo", "qlora"),
    Case("dpo-qlora-checkpointing", "dpo", "qlora", checkpointing=True),
    Case("orpo-lora", "orpo", "lora"),
    Case("kto-lora", "kto", "lora", micro_batch=8),
    Case("tdpo2-full", "tdpo2"),
    Case("sft-full", "sft"),
    Case("reward-full", "reward"),
    Case("reward-lora", "reward", "lora"),
    Case("grpo-lora", "grpo", "lora", micro_batch=2, options=SAMPLED),
    Case("ppo-lora", "ppo", "lora", micro_batch=2, options=SAMPLED),
    Case("ppo-lora-checkpointing", "ppo", "lora", checkpointing=True, micro_batch=2, options=SAMPLED),
    Case("ppo-full", "ppo", micro_batch=2, options=SAMPLED),
]


def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        intermediate_size=3 * SHAPE["hidden_size"],
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2 * (PROMPT + COMPLETION),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **SHAPE,
    )


def rows(case: Case) -> list[dict]:
    """Prompts with pairs, or with labelled completions for KTO."""
    random = np.random.default_rng(0)

    def text(length: int) -> str:
        length = length if case.even else int(random.integers(length // 10, length))
        return " ".join(f"w{i}" for i in random.integers(4, VOCABULARY, length))

    made = []
    for number in range(ROWS):
        row = {"prompt": text(PROMPT)}
        if case.algorithm == "kto":
            row |= {"completion": text(COMPLETION), "label": number % 2 == 0}
        elif not case.online:
            row |= {"chosen": text(COMPLETION), "rejected": text(COMPLETION)}
        made.append(row)
    return made


def reward(prompts: list, completions: list) -> list[float]:
    return [float(len(text)) + hash(text) % 7 for text in completions]


def measure(case: Case) -> dict[str, Any]:
    """Plan a run and take it."""
    console.console.quiet = True
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        LlamaForCausalLM(config()).save_pretrained(folder)
        words.tokenizer(VOCABULARY).save_pretrained(folder)
        args = {
            "per_device_train_batch_size": case.micro_batch,
            "gradient_accumulation_steps": case.accumulation,
            "gradient_checkpointing": case.checkpointing,
        }
        if case.online:
            args["learning_rate"] = 0.0
        algorithm = get_algorithm(case.algorithm, **case.hyperparameters)
        told = {"adapter": case.adapter, **case.options, **({"reward": reward} if case.online else {})}
        data = rows(case)
        made = plan(folder, algorithm, data, args=args, device="cuda" if CUDA else "cpu", **told)
        run = {"output_dir": folder, "max_steps": 3, "save_strategy": "no", "disable_tqdm": True, "use_cpu": not CUDA}
        trainer = Trainer(folder, algorithm, data, args=args | run, **told)
        measured = peak(trainer)
    return {
        "predicted": made.total,
        "measured": measured,
        "error": made.total / measured - 1,
        "peak": made.moment,
        "parts": made.parts,
        "moments": dict(made.moments),
    }


def peak(trainer: Trainer) -> int:
    """Bytes of tensors at the most while a run trains."""
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
        return torch.cuda.max_memory_allocated()
    gc.collect()
    before = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    recorder = Recorder()
    recorder.add(before)
    del before
    with recorder:
        trainer.train()
    return recorder.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[case.name for case in CASES], help="cases; others are kept")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--out", default=str(HERE / "results" / "plan.json"))
    options = parser.parse_args()
    by_name = {case.name: case for case in CASES}
    if options.inside:
        print(json.dumps(measure(by_name[options.inside])))
        return
    out = Path(options.out)
    made = {**record.about(), "shape": {**SHAPE, "vocabulary": VOCABULARY, "row": [PROMPT, COMPLETION]}}
    before = json.loads(out.read_text()) if out.is_file() else {}
    same = all(before.get(key) == value for key, value in made.items())
    results = before["results"] if same else {}
    print(f"{'case':28}{'predicted':>12}{'measured':>12}{'error':>8}   peak")
    for name in options.only:
        done = subprocess.run([sys.executable, __file__, "--inside", name], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
        one = json.loads(done.stdout.splitlines()[-1])
        results[name] = one | {"commit": record.commit()}
        sizes = f"{one['predicted'] / 2**20:8.1f} MiB{one['measured'] / 2**20:8.1f} MiB"
        print(f"{name:28}{sizes}{one['error']:+8.1%}   {one['peak']}", flush=True)
        out.write_text(json.dumps({**made, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
