"""Train a few algorithms on the tiny model in float64 and write their losses: alone, and as one of two processes."""

import json
from pathlib import Path

import tiny
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from helpers import losses, trainer

from prefopt.core.micro_batch import MicroBatch
from prefopt.scoring import tiles
from prefopt.scoring.scorer import Scorer
from prefopt.training import reference_cache

# By name: the algorithm, and whether a cache has the reference's log-probs: it is made once, then read.
RUNS = {name: (name, False) for name in ("dpo", "kto", "orpo", "bco", "dpo_pl")}
RUNS |= {"kto, cache made": ("kto", True), "kto, cache read": ("kto", True), "tdpo2": ("tdpo2", False)}


class Scored:
    """Counts the rows that this process asks a reference about."""

    def __init__(self) -> None:
        self.rows = 0
        score = Scorer.score_reference

        def count(scorer: Scorer, policy: torch.nn.Module, batch: MicroBatch) -> MicroBatch:
            self.rows += len(batch.rows) if batch.ref_logps is None else 0
            return score(scorer, policy, batch)

        Scorer.score_reference = count

    def drain(self) -> list[int]:
        """Of every process, since the last time."""
        rows, self.rows = self.rows, 0
        return gather_object([rows])


def main(out: Path) -> None:
    torch.set_num_threads(1)
    ranks = PartialState(cpu=True).num_processes
    # So few tokens at once that there is something for everyone.
    reference_cache.TOKENS = 64
    results, scored = {}, Scored()
    for name, (algorithm, cached) in RUNS.items():
        if name == "tdpo2":
            # Its head works through a few rows at a time, outside of the wrapper's forward.
            tiles.TILE = 5 * 30
        run = trainer(
            algorithm,
            # 13 pairs at 8 a step: the last step of an epoch is short, and for labelled rows uneven over ranks.
            tiny.ranked(13) if name == "dpo_pl" else tiny.pairs(13),
            reference_cache=out.with_suffix(".cache") if cached else None,
            eval_dataset=tiny.pairs(5, seed=1),
            model=tiny.model(0, torch.float64),
            reference=tiny.model(1, torch.float64) if name != "orpo" else None,
            args={
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 2 // ranks,
                "num_train_epochs": 2,
                "learning_rate": 1e-2,
                "optim": "sgd",
            },
        )
        run.train()
        metrics = run.evaluate()
        kept = {key: value for key, value in metrics.items() if "second" not in key and "runtime" not in key}
        log = run.state.log_history[0]
        results[name] = {"losses": losses(run), "evaluation": kept, "log": log, "scored": scored.drain()}
    if PartialState().is_main_process:
        out.write_text(json.dumps({"ranks": ranks, "results": results}))
