"""Learning rates for `prefopt demo`: every algorithm at several, measured on prompts that the demo leaves alone.

    python benchmarks/demo_sweep.py            # about 15 minutes on two CPU cores

Results go to ``benchmarks/results/demo_sweep.json``, one entry per algorithm and rate; entries that are there already
for the same lab, settings and budget are not run again, and an algorithm that is run again loses those of another lab.
``best`` names the rate with the highest gold reward for each algorithm; `prefopt.lab.rates` holds a copy of it.
"""

import argparse
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch
import transformers

from prefopt.algorithms import get_algorithm
from prefopt.lab.demo import ALGORITHMS, Budget, make_yardstick, train, train_reward_models
from prefopt.lab.measure import Result, Samples
from prefopt.lab.rates import RATES as CHOSEN
from prefopt.lab.rates import SETTINGS
from prefopt.lab.world import Lab, prepare

RESULTS = Path(__file__).parent / "results" / "demo_sweep.json"
RATES = (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3)
# Tried as well where the best of these was the highest one.
HIGHER = {"sft": (3.2e-3, 6.4e-3), "reward": (3.2e-3,)}
EVERY = ("reward", *ALGORITHMS)
COMMAND = "python benchmarks/demo_sweep.py"


def validation(lab: Lab, budget: Budget) -> Lab:
    """The lab with the held-out prompts, and their pairs, that the demo does not measure on."""
    prompts = lab.held_out_prompts[budget.prompts :]
    pairs = [row for row in lab.held_out_pairs if row["prompt"] in set(prompts)]
    return replace(lab, held_out_prompts=prompts, held_out_pairs=pairs)


def load(setting: dict) -> dict:
    """Earlier results, if they are of the same setting; else none."""
    if RESULTS.is_file():
        found = json.loads(RESULTS.read_text())
        if found["setting"] == setting:
            found["runs"] = [run for run in found["runs"] if conditions(run["algorithm"]).items() <= run.items()]
            return found
    return {"command": COMMAND, "setting": setting, "runs": [], "best": {}}


def conditions(name: str) -> dict:
    """What a run of an algorithm depends on besides its learning rate."""
    if not (name in EVERY and name != "reward" and get_algorithm(name).online):
        return {}
    return {"settings": SETTINGS.get(name, {}), "reward_model_rate": CHOSEN["reward"]}


def save(results: dict) -> None:
    """Write the results with the best rate of each algorithm."""
    order = {name: i for i, name in enumerate(EVERY)}
    results["runs"].sort(key=lambda run: (order[run["algorithm"]], run["learning_rate"]))
    best: dict[str, dict] = {}
    for run in results["runs"]:
        by = "accuracy" if run["algorithm"] == "reward" else "reward"
        if run["algorithm"] not in best or run[by] > best[run["algorithm"]][by]:
            best[run["algorithm"]] = run
    results["best"] = {name: run["learning_rate"] for name, run in best.items()}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=EVERY, choices=EVERY)
    parser.add_argument("--rates", nargs="+", type=float, help="instead of those named in this file")
    chosen = parser.parse_args()
    lab, demo = prepare(), Budget()
    budget = replace(demo, prompts=len(lab.held_out_prompts) - demo.prompts, k=4)
    lab_here = validation(lab, demo)
    yardstick = make_yardstick(lab_here, budget)
    setting = {"budget": asdict(budget) | {"seeds": list(budget.seeds)}}
    setting |= {"torch": torch.__version__, "transformers": transformers.__version__}
    results = load(setting)
    start = Result.of("start", [yardstick.of_start()]).reward.mean
    proxies = train_reward_models(lab_here, Path(tempfile.mkdtemp()), budget, CHOSEN["reward"], ("ppo",))
    here = lab.folder.name
    results["runs"] = [
        run for run in results["runs"] if run["lab"] == here or run["algorithm"] not in chosen.algorithms
    ]
    done = {(run["algorithm"], run["learning_rate"]) for run in results["runs"]}
    print(f"start: gold reward {start:.3f}", flush=True)
    for name in chosen.algorithms:
        rates = chosen.rates or (*RATES, *HIGHER.get(name, ()))
        for rate in (rate for rate in rates if (name, rate) not in done):
            trainer, cost = train(lab_here, name, budget, rate, 0, reward=proxies[0])
            run = {"algorithm": name, "learning_rate": rate, "lab": here, "start": round(start, 4), **conditions(name)}
            if name == "reward":
                # All held-out pairs: the demo measures no reward model, and 120 of them would say little.
                metrics = trainer.evaluate([dict(row) for row in lab.held_out_pairs])
                run |= {"accuracy": round(metrics["eval_rewards/accuracies"], 4), "seconds": round(cost.seconds, 1)}
            else:
                measured, samples = yardstick.measure(trainer.policy, trainer.objective)
                run |= summary(Result.of(name, [measured], [cost]), samples)
            results["runs"].append(run)
            save(results)
            print(json.dumps(run), flush=True)


def summary(result: Result, samples: Samples) -> dict:
    """What is recorded of a run; ``distinct`` is the share of completions that are unlike all others."""
    texts = [each.text for group in samples.groups for each in group]
    return {
        "reward": round(result.reward.mean, 4),
        "interval": [round(result.reward.low, 4), round(result.reward.high, 4)],
        "kl": round(result.kl.mean, 3),
        "accuracy": round(result.accuracy.mean, 4),
        "length": round(result.length.mean, 2),
        "distinct": round(len(set(texts)) / len(texts), 4),
        "seconds": round(result.cost.seconds, 1),
    }


if __name__ == "__main__":
    main()
