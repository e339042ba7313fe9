"""The report on a reward model as one HTML file that asks nothing of the network, as JSON, and as tables to print."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.table import Table

from prefopt.evaluation.page import percent, render, write_files
from prefopt.evaluation.reward_report import Bin, RewardReport


def write_reward_report(report: RewardReport, facts: Mapping[str, str], out: Path) -> Path:
    """Write ``report.html`` and ``report.json`` into a folder.

    Args:
        report: the numbers.
        facts: what was evaluated on what, in words.
        out: made if it is not there.

    Returns:
        The path of the HTML file.
    """
    return write_files(out, {"facts": dict(facts), **dataclasses.asdict(report)}, page(report, facts))


def printed(report: RewardReport) -> RenderableType:
    """The same as tables for a terminal."""
    accuracy = _table("accuracy on held-out pairs", "pairs", "right", "95 % interval")
    for one in [report.accuracy, *report.by_length, *report.by_margin]:
        accuracy.add_row(one.name, str(one.n), percent(one.value), f"{percent(one.low)} to {percent(one.high)}")
    rest = _table("calibration and length", "value")
    for name, value, _ in measures(report):
        rest.add_row(name, value)
    return Group(accuracy, "", rest, *(f"warning: {line}" for line in report.warnings))


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def measures(report: RewardReport) -> list[tuple[str, str, str]]:
    """Name, value and meaning of the numbers that are not accuracies."""
    return [
        ("loss", f"{report.loss:.3f}", "mean −log σ(difference of scores); 0.693 is no opinion"),
        ("Brier score", f"{report.brier:.3f}", "mean squared error of the probability; 0.250 is no opinion"),
        ("calibration error (ECE)", f"{report.ece:.3f}", "mean distance of the points from the diagonal"),
        ("Spearman, score with length", _signed(report.spearman), "rank correlation over all completions"),
        ("Pearson, score with length", _signed(report.pearson), "linear correlation over all completions"),
        ("model prefers the longer", _percent(report.prefers_longer), "of the pairs of different length"),
        ("data prefers the longer", _percent(report.longer_is_chosen), "of the same pairs"),
    ]


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def page(report: RewardReport, facts: Mapping[str, str]) -> str:
    """The HTML file."""
    return render(
        "reward_report.html",
        report=report,
        measures=measures(report),
        reliability=Markup(reliability_plot(report.bins)),
        warnings=report.warnings,
        facts=facts,
    )


LEFT, TOP, SIDE, FOOT = 52, 12, 300, 50
"""The plot: where its square begins, how long the square's side is, and the height of the counts under it."""


def reliability_plot(bins: Sequence[Bin]) -> str:
    """An ``<svg>``: share that is right over confidence, both from ½ to 1 (lower where an interval reaches there)."""
    floor = min([0.5, *(one.right.low for one in bins)])
    floor = max(int(floor * 10) / 10, 0.0)

    def x(confidence: float) -> float:
        return LEFT + SIDE * (confidence - 0.5) / 0.5

    def y(right: float) -> float:
        return TOP + SIDE * (1 - right) / (1 - floor)

    most = max((one.right.n for one in bins), default=1)
    points = []
    for one in bins:
        edge, end = (x(float(value)) for value in one.right.name.split(" to "))
        points.append(
            {
                "share": one.right,
                "confidence": one.confidence,
                "x": x(one.confidence),
                "y": y(one.right.value),
                "low": y(one.right.low),
                "high": y(one.right.high),
                "edge": edge + 1,
                "width": end - edge - 2,
                "height": max(FOOT * one.right.n / most, 1),
            }
        )
    base = TOP + SIDE + 14 + FOOT
    return render(
        "reliability.svg",
        left=LEFT,
        right=LEFT + SIDE,
        middle=TOP + SIDE / 2,
        base=base,
        width=LEFT + SIDE + 16,
        height=base + 44,
        ideal=(y(0.5), y(1.0)),
        rows=[(tenth / 10, y(tenth / 10)) for tenth in range(round(floor * 10), 11)],
        columns=[(tenth / 10, x(tenth / 10)) for tenth in range(5, 11)],
        points=points,
    )
