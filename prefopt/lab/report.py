"""The report of a comparison: one HTML file that asks nothing of the network, one chart for a README, one JSON file."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from prefopt.lab.charts import COLOURS, INK, inline, loss_chart, palette, reward_chart, standalone
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
    colours = {result.name: COLOURS[i % len(COLOURS)] for i, result in enumerate(comparison.results)}
    sections = [
        f"<header><h1>{len(comparison.results)} algorithms, one starting model, one budget</h1>"
        f'<p class="lead">{escape(describe(comparison))}</p></header>',
        _table(comparison),
        _figure(
            inline(chart, "reward-kl"),
            f"Gold reward against KL to the starting model. {describe(comparison)}",
            "Gold reward against KL: what was gained, and how far the model moved for it. Bars are 95\u00a0% intervals "
            "over prompts; the dashed line and its band are the starting model.",
        ),
        _completions(comparison, colours),
        _curves(comparison, colours),
        _facts(comparison.facts),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>prefopt: {len(comparison.results)} algorithms compared</title>\n"
        f"<style>\n{palette()}{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{chr(10).join(sections)}\n</main>\n</body>\n</html>\n"
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


def _table(comparison: Comparison) -> str:
    headings = (
        ("Algorithm", "", ""),
        ("Gold reward", "0 to 1", "mean over held-out prompts"),
        ("Win rate", "%", "share of comparisons won against the starting model; ties count one half"),
        ("KL", "nats", "KL(policy ‖ start) per completion"),
        ("Accuracy", "%", "held-out pairs that the implicit reward orders rightly; ties count one half"),
        ("Length", "tokens", "mean length of a completion, end token included"),
        ("Time", "s", "training, without evaluation"),
        ("Memory", "MB", "peak of the process in training, and how much of it training added"),
    )
    cells = "".join(
        f'<th scope="col" title="{escape(title)}">{name}<small>{unit}</small></th>' for name, unit, title in headings
    )
    rows = "\n".join(_row(result) for result in (comparison.start, *comparison.results))
    seeds = comparison.results[0].seeds if comparison.results else 1
    note = "Small numbers are 95\u00a0% t-intervals over held-out prompts (accuracy: over pairs)."
    note += f" The line below is the interval over {seeds} training seeds." if seeds > 1 else ""
    return (
        "<section><h2>Results</h2>\n"
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of results"><table>\n'
        f'<thead><tr>{cells}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>\n<p class="note">{note} Memory is '
        "the peak of the whole process, libraries included; in brackets what training added.</p></section>"
    )


def _row(result: Result) -> str:
    cost = result.cost
    cells = [
        _cell(result.reward, 3),
        _cell(result.win_rate, 1, 100),
        _cell(result.kl, 1),
        _cell(result.accuracy, 1, 100),
        f"<td>{result.length.mean:.1f}</td>",
        f"<td>{cost.seconds:.1f}</td>" if cost else _EMPTY,
        f"<td>{cost.peak_mb:,.0f} <small>(+{cost.added_mb:,.0f})</small></td>" if cost else _EMPTY,
    ]
    name = "starting model" if cost is None else escape(result.name)
    return f'<tr{" class=start" if cost is None else ""}><th scope="row">{name}</th>{"".join(cells)}</tr>'


_EMPTY = '<td class="none">–</td>'


def _cell(value: Estimate | None, digits: int, factor: float = 1) -> str:
    if value is None:
        return _EMPTY
    spans = [(value.low, value.high), *([(value.seed_low, value.seed_high)] if value.seed_low is not None else [])]
    small = "".join(f"<small>{factor * a:.{digits}f} to {factor * b:.{digits}f}</small>" for a, b in spans)
    return f"<td>{factor * value.mean:.{digits}f}{small}</td>"


def _figure(svg: str, alt: str, caption: str) -> str:
    return (
        f'<figure><div class="scroll plot" role="img" aria-label="{escape(alt)}">{svg}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _curves(comparison: Comparison, colours: Mapping[str, str]) -> str:
    drawn = [(name, curve) for name, curve in comparison.curves.items() if len(curve) > 1]
    if not drawn:
        return ""
    parts = [
        f'<figure role="img" aria-label="{escape(name)}: training loss from {curve[0][1]:.3g} at step {curve[0][0]} to '
        f'{curve[-1][1]:.3g} at step {curve[-1][0]}"><figcaption>{escape(name)}</figcaption>'
        f"{inline(loss_chart(curve, colours.get(name, INK)), 'loss-' + name)}</figure>"
        for name, curve in drawn
    ]
    return (
        "<section><h2>Training loss</h2>\n<p>Loss of each step over optimizer steps. Each algorithm minimises a "
        "quantity of its own, so heights cannot be compared between panels.</p>\n"
        f'<div class="panels">\n{chr(10).join(parts)}\n</div></section>'
    )


def _completions(comparison: Comparison, colours: Mapping[str, str]) -> str:
    by_prompt: dict[str, list[Shown]] = {}
    for shown in comparison.shown:
        by_prompt.setdefault(shown.prompt, []).append(shown)
    blocks = []
    for prompt, group in by_prompt.items():
        cards = "\n".join(_card(shown, _variable(shown.name, colours)) for shown in group)
        blocks.append(f'<h3 class="prompt">{escape(prompt)}</h3>\n<div class="cards">\n{cards}\n</div>')
    return (
        "<section><h2>Before and after</h2>\n<p>The first sample of each model for the first held-out prompts, not a "
        f"selection.</p>\n{chr(10).join(blocks)}</section>"
    )


def _variable(name: str, colours: Mapping[str, str]) -> str:
    return f"var(--c{COLOURS.index(colours[name])})" if name in colours else "var(--ink)"


def _card(shown: Shown, colour: str) -> str:
    before = shown.name == "start"
    bars = "".join(
        f'<dt>{escape(name)}</dt><dd><i style="width:{100 * min(max(value, 0.0), 1.0):.0f}%"></i></dd>'
        f"<dd>{value:.2f}</dd>"
        for name, value in shown.components.items()
    )
    return (
        f'<article class="card{" before" if before else ""}" style="--c:{colour}"><h4>'
        f"{'before: starting model' if before else escape(shown.name)} <span>{shown.reward:.2f}</span></h4>"
        f"<p>{escape(shown.text) or '<em>(empty)</em>'}</p><dl>{bars}</dl></article>"
    )


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return (
        "<section><h2>How this was done</h2>\n<p>Every algorithm trained all weights of the same starting model, on "
        "the same preference data, for the same number of optimizer steps with the same number of completions seen per "
        "step. The data was labelled by a noisy judge of a gold reward that is computed from the text. The online "
        "algorithms are told what is good by a reward model trained on that data; none sees the gold reward. All "
        "models were then sampled for the same held-out prompts and scored by it. KL is estimated from "
        f'those samples.</p>\n<dl class="facts">{rows}</dl></section>'
    )


STYLE = """:root { --ink: #1b1b1c; --soft: #5c5c63; --rule: #d5d5d9; --paper: #fdfdfc; --card: #f3f3f1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececee; --soft: #a3a3ab; --rule: #46464d; --paper: #17171a; --card: #212126; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1.0625rem/1.55 system-ui, -apple-system,
  "Segoe UI", Roboto, "Helvetica Neue", sans-serif; -webkit-text-size-adjust: 100%; overflow-wrap: break-word; }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 4rem; }
h1 { font-size: clamp(1.7rem, 5vw, 2.5rem); line-height: 1.15; letter-spacing: -0.015em; margin: 0 0 0.75rem;
  text-wrap: balance; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 3rem 0 0.75rem; }
h3.prompt { font-size: 1rem; margin: 1.75rem 0 0.6rem; }
p { max-width: 40rem; margin: 0 0 1rem; }
.lead { font-size: 1.15rem; }
.note, figcaption { color: var(--soft); font-size: 0.875rem; max-width: 40rem; }
.note { margin-top: 0.6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums lining-nums; font-size: 0.95rem; }
th, td { text-align: right; vertical-align: top; padding: 0.5rem 0 0.5rem 1.25rem; white-space: nowrap;
  border-bottom: 1px solid var(--rule); }
th:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: var(--paper); }
th { font-weight: 600; }
thead th { vertical-align: bottom; font-size: 0.875rem; }
tr.start th { font-weight: 400; font-style: italic; }
small { display: block; font-size: 0.78rem; font-weight: 400; color: var(--soft); }
.none { color: var(--soft); }
figure { margin: 0; }
figcaption { margin-top: 0.5rem; }
.plot { margin-top: 2rem; }
.plot svg { display: block; width: 100%; max-width: 42rem; height: auto; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1.25rem; }
.panels svg { display: block; width: 100%; height: auto; }
.panels figcaption { margin: 0 0 0.25rem; color: var(--ink); font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: 0.75rem; }
.card { background: var(--card); border-top: 3px solid var(--c); border-radius: 3px; padding: 0.75rem 0.9rem;
  display: flex; flex-direction: column; }
.card.before { background: none; outline: 1px solid var(--rule); }
.card h4 { display: flex; justify-content: space-between; gap: 1rem; margin: 0 0 0.4rem; font-size: 0.9rem; }
.card h4 span { font-variant-numeric: tabular-nums; }
.card p { font: 0.98rem/1.45 Charter, "Iowan Old Style", Georgia, serif; margin: 0 0 0.75rem; flex: 1; }
.card dl { display: grid; grid-template-columns: max-content 1fr max-content; gap: 0.1rem 0.6rem; margin: 0;
  font-size: 0.78rem; color: var(--soft); align-items: center; font-variant-numeric: tabular-nums; }
.card dd { margin: 0; }
.card i { display: block; height: 0.4rem; background: var(--c); border-radius: 1px; }
.card dd:has(i) { background: var(--rule); border-radius: 1px; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 0.35rem 1.25rem; margin: 0; font-size: 0.95rem; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; max-width: 44rem; }
@media (max-width: 36rem) {
  main { padding-top: 1.75rem; }
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: 0.7rem; }
}
"""
