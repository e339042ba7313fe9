"""The report on a reward model as one HTML file that asks nothing of the network, as JSON, and as tables to print."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from prefopt.evaluation.page import document, write_files
from prefopt.evaluation.reward_report import Bin, RewardReport, Share


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
    accuracy = Table("accuracy on held-out pairs", "pairs", "right", "95 % interval", title_justify="left")
    for one in [report.accuracy, *report.by_length, *report.by_margin]:
        accuracy.add_row(one.name, str(one.n), f"{one.value:.1%}", f"{one.low:.1%} to {one.high:.1%}")
    rest = Table("calibration and length", "value")
    for name, value, _ in measures(report):
        rest.add_row(name, value)
    return Group(accuracy, rest, *(f"warning: {line}" for line in report.warnings))


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
    a = report.accuracy
    lead = (
        f"The completion that was chosen scores higher in <b>{a.value:.1%}</b> of {a.n} held-out pairs (95&nbsp;% "
        f"interval {a.low:.1%} to {a.high:.1%}; a tie counts one half)."
    )
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td><td class=soft>{escape(what)}</td></tr>"
        for name, value, what in measures(report)
    )
    body = (
        "<h2>Is it as sure as it may be?</h2>\n"
        f"<figure>{reliability_plot(report.bins)}<figcaption>How often the model is right about pairs of which it is "
        "so sure. On the diagonal its probabilities can be taken at their word; below it, the model is too sure of "
        "itself. Bars at the points are 95&nbsp;% intervals, those at the bottom numbers of pairs.</figcaption>"
        "</figure>\n"
        f"<table><tbody>{rows}</tbody></table>\n"
        f"<h2>By length</h2>\n{_shares(report.by_length, 'length of chosen minus rejected')}"
        f"<h2>By difference of scores</h2>\n{_shares(report.by_margin, 'difference of the two scores')}"
    )
    return document("Reward model report", lead, report.warnings, body, facts)


def _shares(shares: Iterable[Share], heading: str) -> str:
    rows = "".join(
        f"<tr><th>{escape(one.name)}</th><td>{one.n}</td><td>{one.value:.1%}</td>"
        f'<td>{_bar(one)}</td><td class="soft number">{one.low:.1%} to {one.high:.1%}</td></tr>'
        for one in shares
    )
    return (
        f"<table><thead><tr><th>{escape(heading)}</th><th>pairs</th><th>right</th><th></th><th>95&nbsp;% interval</th>"
        f"</tr></thead><tbody>{rows}</tbody></table>\n"
    )


def _bar(one: Share) -> str:
    """An interval from 0 to 1 with its middle marked, and a line at ½."""
    return (
        '<svg class="bar" viewBox="0 0 120 14" aria-hidden="true"><line x1="0" y1="7" x2="120" y2="7" class="rule"/>'
        '<line x1="60" y1="1" x2="60" y2="13" class="rule"/>'
        f'<line x1="{120 * one.low:.1f}" y1="7" x2="{120 * one.high:.1f}" y2="7" class="range"/>'
        f'<circle cx="{120 * one.value:.1f}" cy="7" r="4" class="dot"/></svg>'
    )


LEFT, TOP, SIDE, FOOT = 52, 12, 300, 50
"""Of the plot: where its square begins, how long its side is, and the height of the counts under it."""


def reliability_plot(bins: Sequence[Bin]) -> str:
    """An ``<svg>``: share that is right over confidence, both from ½ to 1 (lower where an interval reaches there)."""
    floor = min([0.5, *(one.right.low for one in bins)])
    floor = max(int(floor * 10) / 10, 0.0)

    def x(confidence: float) -> float:
        return LEFT + SIDE * (confidence - 0.5) / 0.5

    def y(right: float) -> float:
        return TOP + SIDE * (1 - right) / (1 - floor)

    base = TOP + SIDE + 14 + FOOT
    parts = [f'<line x1="{x(0.5)}" y1="{y(0.5):.1f}" x2="{x(1)}" y2="{y(1)}" class="ideal"/>']
    for tenth in range(round(floor * 10), 11):
        place = y(tenth / 10)
        parts.append(f'<line x1="{LEFT}" y1="{place:.1f}" x2="{LEFT + SIDE}" y2="{place:.1f}" class="rule"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{place + 4:.1f}" text-anchor="end">{tenth / 10:.1f}</text>')
    for tenth in range(5, 11):
        parts.append(f'<text x="{x(tenth / 10):.1f}" y="{base + 17}" text-anchor="middle">{tenth / 10:.1f}</text>')
    most = max((one.right.n for one in bins), default=1)
    for one in bins:
        share, place = one.right, x(one.confidence)
        left, right = (x(float(edge)) for edge in share.name.split(" to "))
        height = max(FOOT * share.n / most, 1)
        parts.append(
            f'<rect x="{left + 1:.1f}" y="{base - height:.1f}" width="{right - left - 2:.1f}" height="{height:.1f}" '
            f'class="count"><title>{share.n} pairs</title></rect>'
        )
        parts.append(
            f'<line x1="{place:.1f}" y1="{y(share.low):.1f}" x2="{place:.1f}" y2="{y(share.high):.1f}" class="range"/>'
        )
        parts.append(
            f'<circle cx="{place:.1f}" cy="{y(share.value):.1f}" r="5" class="dot"><title>right in {share.value:.1%} '
            f"of {share.n} pairs, confidence {one.confidence:.1%}</title></circle>"
        )
    middle = TOP + SIDE / 2
    parts.append(f'<line x1="{LEFT}" y1="{base}" x2="{LEFT + SIDE}" y2="{base}" class="rule"/>')
    parts.append(f'<text x="{LEFT + SIDE / 2}" y="{base + 36}" text-anchor="middle">confidence, σ(|difference|)</text>')
    parts.append(
        f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">share that is right</text>'
    )
    return (
        f'<svg class="plot" viewBox="0 0 {LEFT + SIDE + 16} {base + 44}" role="img" '
        f'aria-label="Reliability plot"><title>Reliability plot</title>{"".join(parts)}</svg>'
    )
