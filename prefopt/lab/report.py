"""The report of a comparison: one HTML file that asks nothing of the network, one chart for a README, one JSON file."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from prefopt.evaluation.page import render
from prefopt.lab.charts import COLOURS, inline, loss_chart, reward_chart, standalone
from prefopt.lab.measure import Estimate, Result


@dataclass(frozen=True)
class Shown:
    """One completion to show.

    Attributes:
        prompt: what was asked.
        name: of the algorithm, or "start".
        text: the completion.
        reward: its gold reward, in [0, 1].
        components: what the reward is made of, each in [0, 1].
    """

    prompt: str
    name: str
    text: str
    reward: float
    components: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """Everything the report shows.

    Attributes:
        start: the starting model.
        results: one for each algorithm.
        curves: (step, training loss) by algorithm, of the first seed.
        shown: completions, grouped by prompt.
        facts: budget, versions, hardware and so on, in words.
    """

    start: Result
    results: tuple[Result, ...]
    curves: Mapping[str, Sequence[tuple[int, float]]]
    shown: tuple[Shown, ...]
    facts: Mapping[str, str]


def write_report(comparison: Comparison, out: Path) -> Path:
    """Write ``report.html``, ``reward-kl.svg`` and ``results.json`` into a folder.

    Returns:
        The path of the HTML file.
    """
    out.mkdir(parents=True, exist_ok=True)
    chart = reward_chart(comparison.start, comparison.results)
    (out / "reward-kl.svg").write_text(standalone(chart, describe(comparison)), encoding="utf-8")
    results = json.dumps(dataclasses.asdict(comparison), indent=2, allow_nan=False)
    (out / "results.json").write_text(results + "\n", encoding="utf-8")
    path = out / "report.html"
    path.write_text(page(comparison, chart), encoding="utf-8")
    return path


def page(comparison: Comparison, chart: Figure) -> str:
    """The whole HTML document."""
    series = {result.name: i % len(COLOURS) for i, result in enumerate(comparison.results)}
    return render(
        "demo_report.html",
        algorithms=len(comparison.results),
        description=describe(comparison),
        headings=HEADINGS,
        rows=[_row(result) for result in (comparison.start, *comparison.results)],
        seeds=comparison.results[0].seeds,
        chart=inline(chart, "reward-kl"),
        examples=_examples(comparison, series),
        curves=[
            (name, curve, inline(loss_chart(curve, COLOURS[series[name]]), "loss-" + name))
            for name, curve in comparison.curves.items()
            if len(curve) > 1
        ],
        facts=comparison.facts,
    )


def describe(comparison: Comparison) -> str:
    """What came out, in two or three sentences."""
    start, results = comparison.start.reward, comparison.results
    best = max(results, key=lambda result: result.reward.mean)
    above = [result.name for result in results if result.reward.above(start)]
    rest = [result.name for result in results if result.name not in above]
    text = (
        f"The starting model has a gold reward of {start.mean:.2f} out of 1. The highest after training is that of "
        f"{best.name}: {best.reward.mean:.2f} (95\u00a0% interval {best.reward.low:.2f} to {best.reward.high:.2f}). "
    )
    if not rest:
        return text + "Every algorithm is above the start, with the intervals apart."
    return text + f"{len(above)} of {len(results)} are above the start with the intervals apart; not {', '.join(rest)}."


HEADINGS = (
    ("Algorithm", "", ""),
    ("Gold reward", "0 to 1", "mean over held-out prompts"),
    ("Win rate", "%", "share of comparisons won against the starting model; ties count one half"),
    ("KL", "nats", "KL(policy ‖ start) per completion"),
    ("Accuracy", "%", "held-out pairs that the implicit reward orders rightly; ties count one half"),
    ("Length", "tokens", "mean length of a completion, end token included"),
    ("Time", "s", "training, without evaluation"),
    ("Memory", "MB", "peak of the process in training, and how much of it training added"),
)


def _row(result: Result) -> dict[str, Any]:
    cost = result.cost
    cells = [
        cell(result.reward, 3),
        cell(result.win_rate, 1, 100),
        cell(result.kl, 1),
        cell(result.accuracy, 1, 100),
        {"value": f"{result.length.mean:.1f}", "spans": []},
        cost and {"value": f"{cost.seconds:.1f}", "spans": []},
        cost and {"value": f"{cost.peak_mb:,.0f}", "spans": [], "note": f"(+{cost.added_mb:,.0f})"},
    ]
    return {"name": "starting model" if cost is None else result.name, "cells": cells}


def cell(value: Estimate | None, digits: int, factor: float = 1) -> dict[str, Any] | None:
    """A mean with its intervals as a table shows them: over prompts, and over seeds where there are several."""
    if value is None:
        return None
    spans = [(value.low, value.high), *([(value.seed_low, value.seed_high)] if value.seed_low is not None else [])]
    return {
        "value": f"{factor * value.mean:.{digits}f}",
        "spans": [(f"{factor * low:.{digits}f}", f"{factor * high:.{digits}f}") for low, high in spans],
    }


def _examples(comparison: Comparison, series: Mapping[str, int]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The completions by prompt."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for shown in comparison.shown:
        before = shown.name == "start"
        name = "before: starting model" if before else shown.name
        color = f"var(--c{series[shown.name]})" if shown.name in series else "var(--ink)"
        own = {"name": name, "before": before, "color": color}
        by_prompt.setdefault(shown.prompt, []).append(dataclasses.asdict(shown) | own)
    return list(by_prompt.items())
