"""The demo's learning rates are those of the committed sweep."""

import json
from pathlib import Path

from prefopt.algorithms import get_algorithm
from prefopt.lab.demo import ALGORITHMS, Budget
from prefopt.lab.rates import RATES, SETTINGS

SWEEP = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "demo_sweep.json").read_text())


def test_rates_are_the_best_of_the_sweep():
    assert SWEEP["best"] == RATES
    assert set(RATES) == {*ALGORITHMS, "reward"}


def test_best_is_the_rate_with_the_highest_reward_and_not_at_the_edge_of_what_was_tried():
    for name, rate in RATES.items():
        by = "accuracy" if name == "reward" else "reward"
        runs = {run["learning_rate"]: run[by] for run in SWEEP["runs"] if run["algorithm"] == name}
        assert runs[rate] == max(runs.values()), name
        assert min(runs) < rate < max(runs), name


def test_the_sweep_had_the_budget_of_the_demo():
    budget = SWEEP["setting"]["budget"]
    assert (budget["steps"], budget["completions"], budget["n"]) == (Budget().steps, Budget().completions, Budget().n)


def test_the_sweep_had_the_settings_and_the_reward_model_of_the_demo():
    for run in SWEEP["runs"]:
        if "reward_model_rate" in run:
            assert run["reward_model_rate"] == RATES["reward"]
            assert run["settings"] == SETTINGS.get(run["algorithm"], {})
    online = {run["algorithm"] for run in SWEEP["runs"] if "reward_model_rate" in run}
    assert online == {name for name in RATES if name != "reward" and get_algorithm(name).online}
