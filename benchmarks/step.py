"""One DPO step: prefopt, TRL and a plain forward of all rows with all logits, side by side.

    python benchmarks/step.py              # about 12 minutes on two CPU cores

Two cases, both with 8 pairs of a 384-token prompt and two completions of 128 tokens, in float32:

* ``full``: hidden 256, 4 layers, vocabulary 32,000, all weights trained, the reference's log-probs known;
* ``lora``: hidden 512, 8 layers, vocabulary 8,000, LoRA r = 16 on all linear layers, the reference (adapter off) run in
  the step, or its log-probs known ("cached").

Every way has the same start, data and AdamW. Rounds are interleaved, and the fastest of each way counts, in seconds of
forward and backward pass and of the whole step. Memory is the peak of the resident set in one step above what it was
before, in a process of its own. After all rounds the losses are compared.

Results go to ``benchmarks/results/step.json``.
"""

import argparse
import contextlib
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import record
import torch
from contestants import Case, Pair, contestant

from prefopt.lab.measure import costing

HERE = Path(__file__).parent
PAIRS, PROMPT, COMPLETION, RATE = 8, 384, 128, 1e-4


CASES = {"full": Case(256, 4, 32_000, adapter=False), "lora": Case(512, 8, 8_000, adapter=True)}
WAYS = {
    "full": ("plain, cached", "TRL, cached", "prefopt, cached"),
    "lora": ("plain", "TRL", "prefopt", "plain, cached", "TRL, cached", "prefopt, cached"),
}


def pairs(case: Case) -> list[Pair]:
    generator = np.random.default_rng(0)

    def draw(length: int) -> list[int]:
        return generator.integers(3, case.vocabulary, length).tolist()

    return [(draw(PROMPT), draw(COMPLETION), draw(COMPLETION)) for _ in range(PAIRS)]


class Run:
    """One way of one case, ready to step."""

    def __init__(self, case: str, way: str, folder: str) -> None:
        own = contestant(way, CASES[case], folder)
        began = time.perf_counter()
        batch = own.batch(pairs(CASES[case]))
        self.collating = time.perf_counter() - began
        self.share = lambda: own.share(batch)
        self.weights = [weight for weight in own.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=RATE)
        self.passes = self.whole = float("inf")
        self.loss = float("nan")

    def step(self) -> None:
        began = time.perf_counter()
        self.loss = self.share().item()
        passed = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.passes = min(self.passes, passed - began)
        self.whole = min(self.whole, time.perf_counter() - began)


def memory(case: str, way: str) -> float:
    """MB at the peak of one step, in this process, above what it was before."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(case, way, folder)
        with costing() as cost:
            run.share()
        return cost.added_mb


def measured(case: str, rounds: int) -> list[dict]:
    """All ways of a case."""
    with contextlib.ExitStack() as stack:
        runs = {way: Run(case, way, stack.enter_context(tempfile.TemporaryDirectory())) for way in WAYS[case]}
        # Adapters begin with random numbers: everyone takes those of the first.
        first, *others = runs.values()
        for other in others:
            for own, given in zip(other.weights, first.weights, strict=True):
                own.data.copy_(given.data)
        for _ in range(rounds):
            for run in runs.values():
                run.step()
    table = []
    for way, run in runs.items():
        own = [sys.executable, __file__, "--memory", case, way]
        added = float(subprocess.run(own, capture_output=True, text=True, check=True).stdout.split()[-1])
        row = {
            "case": case,
            "way": way,
            "passes_s": run.passes,
            "step_s": run.whole,
            "mb": added,
            "loss": run.loss,
            "batch_s": run.collating,
        }
        table.append(row)
    for row in table:
        for other in ("plain", "TRL"):
            base = next(one for one in table if one["way"] == f"{other}, cached" or one["way"] == other)
            row[f"passes_x_{other}"] = base["passes_s"] / row["passes_s"]
            row[f"step_x_{other}"] = base["step_s"] / row["step_s"]
            row[f"memory_x_{other}"] = base["mb"] / row["mb"]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each way, of which the fastest counts")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "WAY"), help="print the memory of one way and stop")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "step.json")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if chosen.memory:
        print(memory(*chosen.memory))
        return
    table = []
    for case in chosen.cases:
        rows = measured(case, chosen.rounds)
        table += rows
        print(
            f"\n{case}: {'way':18}{'passes s':>10}{'step s':>9}{'MB':>8}{'loss':>12}   × plain, × TRL (first of each)"
        )
        for row in rows:
            print(
                f"{'':{len(case) + 2}}{row['way']:18}{row['passes_s']:10.2f}{row['step_s']:9.2f}{row['mb']:8.0f}"
                f"{row['loss']:12.7f}   step {row['step_x_plain']:.2f}, {row['step_x_TRL']:.2f}"
                f"  memory {row['memory_x_plain']:.1f}, {row['memory_x_TRL']:.1f}",
                flush=True,
            )
    setting = (
        f"{PAIRS} pairs of {PROMPT} + 2 × {COMPLETION} tokens, float32, AdamW; best of {chosen.rounds} "
        "interleaved rounds; memory is the peak of the resident set in one step above what it was before, in a process "
        "of its own; ratios are against the first plain and the first TRL row of the case"
    )
    record.write(chosen.out, "python benchmarks/step.py", setting, "trl", steps=table)


if __name__ == "__main__":
    main()
