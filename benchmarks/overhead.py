"""What the trainer costs beyond the step itself: its whole loop, against a bare PyTorch loop on the same step.

    python benchmarks/overhead.py          # about 9 minutes on one CPU core

Both loops take the same batches through the same scoring (`prefopt.scoring.scorer.Scorer`), objective, clipping and
AdamW;
the bare one has nothing else, the trainer has everything that `prefopt train dpo` has by default (preparing, metrics,
schedule, callbacks), and logs every step. Their steps alternate inside one run of the trainer: a trainer's step is all
of the time between two of the bare loop's. Time is that of the processor on one thread, which does not count what other
programs take. Three numbers come out: the fastest step of each against the other's, and the median of what each step of
the trainer took more than the bare one right after it, as a share and in milliseconds, each with a 95 % interval. Two
models have hardly any weights: there the milliseconds are told most exactly.

Results go to ``benchmarks/results/overhead.json``.
"""

import argparse
import itertools
import logging
import math
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from contestants import Case
from torch import nn
from transformers import TrainerCallback

import prefopt
from prefopt.data import TokenizedDataset, TokenizedExample
from prefopt.data.audit import Audit
from prefopt.scoring.scorer import Scorer

HERE = Path(__file__).parent
PAIRS, PROMPT, COMPLETION, RATE, CLIP = 4, 128, 64, 1e-5, 1.0
STEPS = 10
"""In an epoch."""
WARM_UP = 3
CASES = {"full": Case(256, 4, 8_000, adapter=False), "lora": Case(256, 8, 8_000, adapter=True)}
# As many modules and tokens with hardly a step to them: what is left is what the trainer adds.
NARROW = {"full, narrow": Case(64, 4, 100, adapter=False), "lora, narrow": Case(64, 8, 100, adapter=True)}
MORE = 4
"""Times as many steps of these."""


def dataset(case: Case) -> TokenizedDataset:
    """Pairs of one length, so that all steps are alike."""
    generator = np.random.default_rng(0)

    def draw(length: int) -> np.ndarray:
        return generator.integers(3, case.vocabulary, length, dtype=np.int32)

    number = PAIRS * STEPS
    examples = [TokenizedExample(i, draw(PROMPT), (draw(COMPLETION), draw(COMPLETION))) for i in range(number)]
    return TokenizedDataset("pairs", examples, 8192, 0, Audit("pairs", number, number, 0, [], 8192))


class Bare:
    """The bare loop, one step at a time."""

    def __init__(self, trainer: prefopt.Trainer, model: nn.Module, data: TokenizedDataset) -> None:
        self.model, self.data = model, data
        self.objective = trainer.objective
        self.scorer = Scorer(self.objective, trainer.reference)
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args)
        self.optimizer = kind(self.weights, **options, weight_decay=0.0)
        self.starts = itertools.cycle(range(0, len(data), PAIRS))

    def step(self) -> None:
        start = next(self.starts)
        batch = self.data.collate([self.data[i] for i in range(start, start + PAIRS)])
        self.model.eval()
        batch = self.scorer.score_reference(self.model, batch)
        self.model.train()
        loss = self.objective(self.scorer.container(self.model, batch)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Alternate(TrainerCallback):
    """After every step of the trainer, one of the bare loop."""

    def __init__(self) -> None:
        self.bare: Bare | None = None
        self.seconds: dict[str, list[float]] = {"trainer": [], "bare": []}
        self.began = float("-inf")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        ended = time.process_time()
        self.seconds["trainer"].append(ended - self.began)
        self.bare.step()
        # What follows in the trainer, its logging for one, belongs to its next step.
        self.began = time.process_time()
        self.seconds["bare"].append(self.began - ended)


def measured(name: str, case: Case, rounds: int) -> dict:
    alternate = Alternate()
    data = dataset(case)
    with tempfile.TemporaryDirectory() as folder:
        trainers = []
        for callbacks in ((alternate,), ()):
            torch.manual_seed(1)
            trainers.append(
                prefopt.Trainer(
                    case.model(),
                    "dpo",
                    data,
                    adapter=case.lora(),
                    processing_class=case.tokenizer(),
                    args={
                        "output_dir": folder,
                        "per_device_train_batch_size": PAIRS,
                        "gradient_accumulation_steps": 1,
                        "max_steps": rounds + WARM_UP,
                        "learning_rate": RATE,
                        "max_grad_norm": CLIP,
                        "logging_steps": 1,
                        "save_strategy": "no",
                        "use_cpu": True,
                    },
                    callbacks=callbacks,
                )
            )
        trainer, other = trainers
        alternate.bare = Bare(other, other.policy, data)
        trainer.train()
    ours, bare = (np.array(alternate.seconds[way][WARM_UP:]) for way in ("trainer", "bare"))
    return {
        "case": name,
        "trainer_s": ours.min(),
        "bare_s": bare.min(),
        "overhead_of_fastest": ours.min() / bare.min() - 1,
        "overhead": median(ours / bare - 1),
        "overhead_ms": median(1e3 * (ours - bare)),
    }


def median(values: np.ndarray) -> dict[str, float]:
    """With the order statistics that hold the median of any distribution with 95 %."""
    values, middle = np.sort(values), len(values) // 2
    spread = round(0.98 * math.sqrt(len(values)))
    low, high = max(0, middle - spread), min(len(values) - 1, middle + spread)
    return {"median": float(np.median(values)), "low": float(values[low]), "high": float(values[high])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="steps of each loop")
    every = CASES | NARROW
    parser.add_argument("--cases", nargs="+", default=list(every), choices=list(every))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "overhead.json")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    table = [measured(case, every[case], chosen.rounds * (MORE if case in NARROW else 1)) for case in chosen.cases]
    for row in table:
        share, ms = row["overhead"], row["overhead_ms"]
        print(
            f"{row['case']:12} trainer {row['trainer_s']:.3f} s, bare {row['bare_s']:.3f} s per step: "
            f"fastest {row['overhead_of_fastest']:+.1%}, median {share['median']:+.1%} "
            f"[{share['low']:+.1%}, {share['high']:+.1%}], {ms['median']:.1f} ms [{ms['low']:.1f}, {ms['high']:.1f}]"
        )
    setting = (
        f"DPO, {PAIRS} pairs of {PROMPT} + 2 × {COMPLETION} tokens a step, float32, AdamW; {chosen.rounds} "
        f"alternating steps each, {MORE} times as many of narrow models"
    )
    record.write(chosen.out, "python benchmarks/overhead.py", setting, cases=table)


if __name__ == "__main__":
    main()
