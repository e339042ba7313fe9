"""Every algorithm that samples, on the demo's world, against a reward model: does it raise the gold reward?

    python benchmarks/online_zoo.py
    python benchmarks/online_zoo.py --only nash_md xpo --seeds 0 1 2

Each gets what it gets in `prefopt demo`: 40 steps, 64 completions a step, and a reward model of the lab's pairs; none
sees the gold reward. Learning rates are those that the demo's sweep chose for grpo (for algorithms that weigh log-probs
by advantages), dpo (for losses on pairs) and rejection sampling (for imitation); the pull to the start is of the same
size for all that have one. As in the demo, completions of four steps are sampled at once; the two algorithms that go in
rounds sample those of ten steps. `prefopt demo --overoptimization` looks at five of them with three seeds.

Results go to ``benchmarks/results/online_zoo.json``, after every algorithm.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import record

from prefopt.algorithms.online import assemblies
from prefopt.lab.demo import Budget, make_yardstick, train, train_reward_models
from prefopt.lab.measure import Result
from prefopt.lab.quiet import quiet
from prefopt.lab.rates import RATES, SETTINGS
from prefopt.lab.world import prepare

HERE = Path(__file__).parent
PULL = 0.2
FOUR = {"minibatches": 4}
IN_LOSS = FOUR | {"beta": PULL}
IN_REWARD = FOUR | {"kl_coef": PULL}
ON_PAIRS = FOUR | {"beta": 0.3}
ROUNDS = {"minibatches": 10}
RUNS: dict[str, tuple[float, dict[str, Any]]] = {
    "ppo": (RATES["ppo"], SETTINGS["ppo"]),
    "grpo": (RATES["grpo"], SETTINGS["grpo"]),
    "rejection_sampling": (RATES["rejection_sampling"], SETTINGS["rejection_sampling"]),
    "rloo": (RATES["grpo"], IN_REWARD),
    "reinforce": (RATES["grpo"], IN_REWARD),
    "reinforce_pp": (RATES["grpo"], IN_REWARD),
    "dr_grpo": (RATES["grpo"], IN_LOSS | {"max_length": 64}),
    "dapo": (RATES["grpo"], IN_LOSS),
    "gspo": (RATES["grpo"], IN_LOSS),
    "cispo": (RATES["grpo"], IN_LOSS),
    "nash_md": (RATES["grpo"], FOUR | {"tau": PULL}),
    "online_dpo": (RATES["dpo"], ON_PAIRS),
    "online_ipo": (RATES["ipo"], FOUR | {"tau": 0.3}),
    "xpo": (RATES["dpo"], ON_PAIRS),
    "iterative_dpo": (RATES["dpo"], ROUNDS | {"beta": 0.3}),
    "rso": (RATES["dpo"], FOUR),
    "rest_em": (RATES["rejection_sampling"], ROUNDS),
}
"""Learning rate and hyperparameters that are not at their defaults."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="training seeds, each a run of its own")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "online_zoo.json")
    chosen = parser.parse_args()
    if missing := set(assemblies()) - {*RUNS, "online"}:
        parser.error(f"no learning rate for {', '.join(sorted(missing))}: add one to RUNS.")
    budget = Budget(seeds=tuple(chosen.seeds))
    lab = prepare()
    yardstick = make_yardstick(lab, budget)
    start = Result.of("start", [yardstick.of_start()])
    rows = [row_of(start, start, {})]
    with quiet():
        rewards = train_reward_models(lab, Path(tempfile.mkdtemp()), budget, RATES["reward"], chosen.only)
        for name in chosen.only:
            rate, settings = RUNS[name]
            runs = []
            for seed in budget.seeds:
                trainer, _ = train(lab, name, budget, rate, seed, reward=rewards[seed], settings=settings)
                runs.append(yardstick.measure(trainer.policy, trainer.objective)[0])
            result = Result.of(name, runs)
            rows.append(row_of(result, start, {"learning_rate": rate, "settings": settings}))
            print(f"{name:20} {rows[-1]['reward']:.3f} {rows[-1]['interval']}  KL {result.kl.mean:.1f}", flush=True)
            write(chosen, budget, rows)


def row_of(result: Result, start: Result, settings: dict[str, Any]) -> dict[str, Any]:
    reward = result.reward
    row = {
        "name": result.name,
        "reward": round(reward.mean, 4),
        "interval": [round(reward.low, 4), round(reward.high, 4)],
    }
    if result is start:
        return row
    return row | {"above_the_start": reward.above(start.reward), "kl": round(result.kl.mean, 2), **settings}


def write(chosen: argparse.Namespace, budget: Budget, rows: list[dict[str, Any]]) -> None:
    setting = (
        f"{budget.steps} steps of {budget.completions} completions, seeds {', '.join(map(str, budget.seeds))}; gold "
        f"reward on {budget.prompts} held-out prompts × {budget.k}, 95 % intervals over prompts"
    )
    record.write(chosen.out, "python benchmarks/online_zoo.py", setting, results=rows)


if __name__ == "__main__":
    main()
