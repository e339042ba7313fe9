"""What happens to the gold reward while a policy is optimized against a reward model: the over-optimization curve.

Two questions, one report. *Does it help?* Every algorithm is trained with its settings of the demo against a reward
model of the lab's pairs, with several seeds, and its gold reward is compared with that of the start. *When does it
cheat?* The same algorithms are trained for longer, without any pull to the start, against a reward model of few pairs:
the proxy keeps rising while the gold reward turns down (Gao et al. 2022, arXiv 2210.10760).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from prefopt.core.console import results
from prefopt.evaluation.page import render
from prefopt.lab.charts import COLOURS, MARKERS, bare, inline, standalone
from prefopt.lab.demo import Budget, Lab, facts, make_yardstick, train, train_reward_models
from prefopt.lab.measure import Estimate, Result, Samples, Yardstick, log_ratios
from prefopt.lab.quiet import quiet
from prefopt.lab.rates import RATES, SETTINGS
from prefopt.lab.report import cell
from prefopt.rewards.reward_model import RewardModel

ALGORITHMS = ("ppo", "rloo", "grpo", "rejection_sampling", "online_dpo")
STUDY_RATES = RATES | {"rloo": RATES["grpo"], "online_dpo": RATES["dpo"]}
CAREFUL: dict[str, dict[str, Any]] = SETTINGS | {"rloo": {"kl_coef": 0.2}, "online_dpo": {"beta": 0.3}}
"""Those of the demo; the two that are not in it have the learning rates of their kin."""

FREE: dict[str, dict[str, Any]] = {
    "ppo": {"kl_coef": 0.0, "passes": 2},
    "rloo": {"kl_coef": 0.0},
    "grpo": {"beta": 0.0},
    "rejection_sampling": {},
    "online_dpo": {"beta": 0.03},
}
"""Settings without a pull to the start, or (DPO has no such setting) with hardly any."""


@dataclass(frozen=True)
class Point:
    """A policy on its way.

    Attributes:
        step: optimizer steps so far.
        kl: KL(π ‖ π_0) per completion, in nats.
        proxy: mean score of the reward model that it is trained against.
        gold: mean gold reward, in [0, 1].
    """

    step: int
    kl: float
    proxy: float
    gold: float


@dataclass(frozen=True)
class Study:
    """Everything the report shows.

    Attributes:
        start: the starting model.
        results: each algorithm with its settings of the demo, over all seeds.
        careful: curves of the first seed of these runs.
        free: curves without a pull to the start, against the weak reward model.
        facts: how it was done.
    """

    start: Result
    results: tuple[Result, ...]
    careful: Mapping[str, Sequence[Point]]
    free: Mapping[str, Sequence[Point]]
    facts: Mapping[str, str]


class Tracker(TrainerCallback):
    """Measures the policy every few steps, on held-out prompts."""

    def __init__(self, yardstick: Yardstick, proxy: RewardModel, every: int) -> None:
        self.yardstick, self.proxy, self.every = yardstick, proxy, every
        self.points = [self._point(0, yardstick.start)]

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, model: nn.Module | None = None, **_: Any
    ) -> None:
        if state.global_step % self.every == 0:
            self.points.append(self._point(state.global_step, model))

    def _point(self, step: int, model: nn.Module) -> Point:
        samples = self.yardstick.sample(model, self.yardstick.seed + 1)
        ratios = log_ratios(model, self.yardstick.start, samples, self.yardstick.pairs.pad_token_id)
        return Point(step, float(ratios.mean()), float(np.mean(scores(self.proxy, samples))), samples.rewards.mean())


def scores(proxy: RewardModel, samples: Samples) -> list[float]:
    """What a reward model says of every completion."""
    rows = [(prompt, one) for prompt, group in zip(samples.prompts, samples.groups, strict=True) for one in group]
    return proxy([prompt for prompt, _ in rows], [one.text for _, one in rows], ended=[one.ended for _, one in rows])


def study(
    lab: Lab,
    out: Path,
    *,
    budget: Budget,
    rates: Mapping[str, float],
    algorithms: Sequence[str] = ALGORITHMS,
    weak_pairs: int = 160,
    free_steps: int = 80,
    every: int = 5,
    tracked: int = 60,
) -> Study:
    """Train, track and measure.

    Args:
        lab: see `prefopt.lab.demo.Lab`.
        out: the reward models go to ``out/models``.
        budget: of the careful runs; ``seeds`` says how many of them.
        rates: learning rates, those of ``"reward"`` included.
        algorithms: their names.
        weak_pairs: pairs that the weak reward model is trained on.
        free_steps: optimizer steps of the free runs.
        every: steps between two points of a curve.
        tracked: held-out prompts that a point is measured on.
    """
    yardstick = make_yardstick(lab, budget)
    few = make_yardstick(lab, replace(budget, prompts=min(tracked, budget.prompts), k=1))
    strong = train_reward_models(lab, out, budget, rates["reward"], algorithms)
    weak_lab = replace(lab, pairs=list(lab.pairs[:weak_pairs]))
    weak = train_reward_models(
        weak_lab, out / "weak", replace(budget, seeds=budget.seeds[:1]), rates["reward"], ("ppo",)
    )
    results, careful, free = [], {}, {}
    for name in algorithms:
        runs, costs = [], []
        for seed in budget.seeds:
            tracker = Tracker(few, RewardModel.load(strong[seed]), every) if seed == budget.seeds[0] else None
            watchers = [tracker] if tracker else []
            trainer, cost = train(
                lab, name, budget, rates[name], seed, *watchers, reward=strong[seed], settings=CAREFUL.get(name, {})
            )
            runs.append(yardstick.measure(trainer.policy, trainer.objective)[0])
            costs.append(cost)
            if tracker:
                careful[name] = tracker.points
        results.append(Result.of(name, runs, costs))
        tracker = Tracker(few, RewardModel.load(weak[budget.seeds[0]]), every)
        longer = replace(budget, steps=free_steps)
        train(
            lab, name, longer, rates[name], budget.seeds[0], tracker, reward=weak[budget.seeds[0]], settings=FREE[name]
        )
        free[name] = tracker.points
        say_line(name, results[-1], free[name])
    told = facts(lab, budget, rates, algorithms) | {
        "Careful runs": "a reward model of all pairs for each seed; "
        + "; ".join(f"{name} {CAREFUL.get(name) or 'as it is'}" for name in algorithms),
        "Free runs": f"{free_steps} steps; " + "; ".join(f"{name} {FREE[name] or 'as it is'}" for name in algorithms),
        "Weak reward model": f"{weak_pairs} pairs",
        "Repeat with": "prefopt demo --overoptimization",
    }
    return Study(Result.of("start", [yardstick.of_start()]), tuple(results), careful, free, told)


def say_line(name: str, result: Result, points: Sequence[Point]) -> None:
    """One line of progress."""
    peak, last = max(points, key=lambda point: point.gold), points[-1]
    Console(stderr=True).print(
        f"{name}: gold {result.reward.mean:.3f} after the careful run; free: gold {peak.gold:.3f} at best (step "
        f"{peak.step}), {last.gold:.3f} at the end, proxy {points[0].proxy:.2f} to {last.proxy:.2f}",
        highlight=False,
    )


def run_overoptimization(out: Path = Path("prefopt-demo")) -> Path:
    """Prepare the lab, do the study with three seeds, print a table, and write ``overoptimization.html``.

    Returns:
        The path of the report.
    """
    from prefopt.lab.world import prepare

    lab = prepare()
    with quiet():
        found = study(lab, out, budget=Budget(seeds=(0, 1, 2)), rates=STUDY_RATES)
    path = write(found, out)
    print_study(found)
    results().print(f"\nReport: {path}", soft_wrap=True)
    return path


# ---- the report ------------------------------------------------------------------------------------------------------


def write(found: Study, out: Path) -> Path:
    """Write ``overoptimization.html``, ``overoptimization.svg`` and ``overoptimization.json`` into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    chart = curves_chart(found.free, found.start.reward)
    (out / "overoptimization.svg").write_text(standalone(chart, describe(found)), encoding="utf-8")
    text = json.dumps(asdict(found), indent=2, allow_nan=False)
    (out / "overoptimization.json").write_text(text + "\n", encoding="utf-8")
    path = out / "overoptimization.html"
    path.write_text(page(found), encoding="utf-8")
    return path


def describe(found: Study) -> str:
    """What came out, in a few sentences."""
    start = found.start.reward
    above = [result.name for result in found.results if result.reward.above(start)]
    turned = [name for name, points in found.free.items() if _turned(points)]
    text = f"{len(above)} of {len(found.results)} algorithms raise the gold reward above the start's {start.mean:.2f} "
    text += (
        "with 95\u00a0% intervals apart when they are held near it. Without that, against a reward model of few pairs, "
    )
    return text + (
        f"the proxy keeps rising and the gold reward turns down for {', '.join(turned)}."
        if turned
        else "no gold reward turned down in these runs."
    )


def _turned(points: Sequence[Point]) -> bool:
    """Whether the proxy ended above, and the gold reward below, where they were when the gold reward was highest."""
    peak, last = max(points, key=lambda point: point.gold), points[-1]
    return last.proxy > peak.proxy and last.gold < peak.gold - 0.05


def curves_chart(curves: Mapping[str, Sequence[Point]], start: Estimate) -> Figure:
    """Proxy (left) and gold reward (right) against the square root of the KL, a line for each algorithm."""
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, label in ((left, "proxy: score of the reward model"), (right, "gold reward")):
        bare(axes)
        axes.set_xlabel("√KL to the starting model, √nats per completion")
        axes.set_ylabel(label)
    right.axhspan(start.low, start.high, color="#c9c9cc", alpha=0.45, linewidth=0)
    for i, (name, points) in enumerate(curves.items()):
        x = np.sqrt(np.maximum([point.kl for point in points], 0.0))
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4}
        left.plot(x, [point.proxy for point in points], linewidth=1.3, **style)
        right.plot(x, [point.gold for point in points], linewidth=1.3, label=name, **style)
    figure.legend(loc="outside upper center", ncols=len(curves), frameon=False, fontsize=9)
    return figure


def page(found: Study) -> str:
    """The whole HTML document."""
    free, careful = (curves_chart(curves, found.start.reward) for curves in (found.free, found.careful))
    return render(
        "overoptimization.html",
        description=describe(found),
        rows=[
            {
                "name": "starting model" if result is found.start else result.name,
                "reward": cell(result.reward, 3),
                "kl": cell(result.kl, 1),
            }
            for result in (found.start, *found.results)
        ],
        careful=inline(careful, "careful"),
        free=inline(free, "free"),
        facts=found.facts,
    )


def print_study(found: Study) -> None:
    """One row for each algorithm."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("algorithm", "gold reward", "seeds", "KL", "free: best", "last", "proxy +"):
        table.add_column(heading, justify="left" if heading == "algorithm" else "right", no_wrap=True)
    start = found.start.reward
    table.add_row("start", f"{start.mean:.3f} ±{(start.high - start.low) / 2:.3f}", *["-"] * 5)
    for result in found.results:
        reward, points = result.reward, found.free[result.name]
        seeds = "-" if reward.seed_low is None else f"±{(reward.seed_high - reward.seed_low) / 2:.3f}"
        table.add_row(
            result.name,
            f"{reward.mean:.3f} ±{(reward.high - reward.low) / 2:.3f}",
            seeds,
            f"{result.kl.mean:.1f}",
            f"{max(point.gold for point in points):.3f}",
            f"{points[-1].gold:.3f}",
            f"{points[-1].proxy - points[0].proxy:.2f}",
        )
    out = results()
    out.print(table)
    explained = (
        "±: half of a 95 % interval over prompts, and over seeds. free: gold reward of the runs without a pull to the "
        "start, at its best and at the end, and what the proxy gained. "
    )
    out.print(explained + describe(found), style="dim")
