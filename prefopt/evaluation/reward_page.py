"""The report on a reward model as one HTML file that asks nothing of the network, as JSON, and as tables to print."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

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
    out.mkdir(parents=True, exist_ok=True)
    numbers = {"facts": dict(facts), **dataclasses.asdict(report)}
    (out / "report.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    path = out / "report.html"
    path.write_text(page(report, facts), encoding="utf-8")
    return path


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
    warnings = "".join(f'<p class="warning"><b>Warning.</b> {escape(_sentence(line))}</p>' for line in report.warnings)
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td><td class=soft>{escape(what)}</td></tr>"
        for name, value, what in measures(report)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Reward model report</title>\n'
        f"<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Reward model report</h1>\n"
        f'<p class="lead">The completion that was chosen scores higher in <b>{a.value:.1%}</b> of {a.n} held-out pairs '
        f"(95&nbsp;% interval {a.low:.1%} to {a.high:.1%}; a tie counts one half).</p>\n{warnings}"
        "<h2>Is it as sure as it may be?</h2>\n"
        f"<figure>{reliability_plot(report.bins)}<figcaption>How often the model is right about pairs of which it is "
        "so sure. On the diagonal its probabilities can be taken at their word; below it, the model is too sure of "
        "itself. Bars at the points are 95&nbsp;% intervals, those at the bottom numbers of pairs.</figcaption>"
        "</figure>\n"
        f"<table><tbody>{rows}</tbody></table>\n"
        f"<h2>By length</h2>\n{_shares(report.by_length, 'length of chosen minus rejected')}"
        f"<h2>By difference of scores</h2>\n{_shares(report.by_margin, 'difference of the two scores')}"
        f"<h2>What was evaluated</h2>\n<dl>{_facts(facts)}</dl>\n</main>\n</body>\n</html>\n"
    )


def _sentence(line: str) -> str:
    return line[:1].upper() + line[1:]


def _facts(facts: Mapping[str, str]) -> str:
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())


def _shares(shares: Iterable[Share], heading: str) -> str:
    rows = "".join(
        f"<tr><th>{escape(one.name)}</th><td>{one.n}</td><td>{one.value:.1%}</td>"
        f"<td>{_bar(one)}</td><td class=soft>{one.low:.1%} to {one.high:.1%}</td></tr>"
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


STYLE = """:root { --paper: #fefefe; --ink: #1b1b1c; --soft: #5c5c61; --rule: #dcdce0; --mark: #0067a5; --warn: #8a3b00;
  --warn-paper: #fff4ea; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181a; --ink: #ececee; --soft: #a7a8ad; --rule: #3a3b40;
  --mark: #4fa8df; --warn: #f5b27a; --warn-paper: #33261a; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1.0625rem/1.55 system-ui, -apple-system,
  "Segoe UI", sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.6rem, 5vw, 2.2rem); line-height: 1.15; margin: 0 0 0.75rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.75rem; }
.lead { font-size: 1.15rem; }
.warning { background: var(--warn-paper); color: var(--warn); padding: 0.6rem 0.9rem; border-radius: 0.4rem; }
figure { margin: 0 0 1.5rem; }
figcaption, .soft { color: var(--soft); font-size: 0.875rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.95rem; }
th, td { text-align: left; padding: 0.35rem 0.75rem 0.35rem 0; border-bottom: 1px solid var(--rule); font-weight: 400; }
thead th { font-size: 0.875rem; color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.35rem 1.25rem; margin: 0; font-size: 0.95rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.plot { width: 100%; max-width: 27rem; height: auto; display: block; margin: 0 0 0.5rem; }
.bar { width: 7.5rem; height: 0.9rem; display: block; }
svg text { fill: var(--soft); font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; }
svg .rule { stroke: var(--rule); } svg .ideal { stroke: var(--soft); stroke-dasharray: 4 3; }
svg .range { stroke: var(--mark); stroke-width: 2; } svg .dot { fill: var(--mark); stroke: var(--paper); }
svg .count { fill: var(--mark); opacity: 0.35; }
"""
