"""Train a few algorithms on the tiny model in float64 and write their losses: run by itself and under a launcher.

Usage: distributed_run.py OUT.json
"""

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import tiny  # noqa: E402
import torch  # noqa: E402
from accelerate import PartialState  # noqa: E402
from helpers import losses, trainer  # noqa: E402

from prefopt.scoring import tiles  # noqa: E402

ALGORITHMS = ("dpo", "kto", "orpo", "bco", "dpo_pl", "tdpo2")


def main(out: str) -> None:
    torch.set_num_threads(1)
    ranks = PartialState(cpu=True).num_processes
    results = {}
    for name in ALGORITHMS:
        if name == "tdpo2":
            # Its head works through a few rows at a time, outside of the wrapper's forward.
            tiles.TILE = 5 * 30
        run = trainer(
            name,
            # 13 pairs at 8 a step: the last step of an epoch is short, and for labelled rows uneven over ranks.
            tiny.ranked(13) if name == "dpo_pl" else tiny.pairs(13),
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
        results[name] = {"losses": losses(run), "evaluation": kept, "log": run.state.log_history[0]}
    if PartialState().is_main_process:
        Path(out).write_text(json.dumps({"ranks": ranks, "results": results}))


if __name__ == "__main__":
    main(sys.argv[1])
