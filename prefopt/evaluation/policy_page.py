"""The report on a policy as one HTML file that asks nothing of the network, as JSON, and as a table to print."""

import dataclasses
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from prefopt.evaluation.page import document, write_files
from prefopt.evaluation.policy_report import PolicyReport, Scored
from prefopt.evaluation.statistics import Estimate

COMPLETIONS = "completions.jsonl"
"""The file of all completions, with their rewards."""
SHOWN = 4
"""Prompts whose completions the page shows."""
SHARES = ("ended", "repetition", "win_rate")
MEANINGS = {
    "reward": "mean over the completions",
    "length": "per completion, the end token included",
    "ended": "completions that end by themselves rather than at the token limit",
    "repetition": "token trigrams that stood before in the same completion",
    "gain": "reward minus the start's, prompt by prompt",
    "win_rate": "comparisons with a completion of the start that are won; a tie counts one half",
    "kl": "KL to the start, per completion",
}
NAMES = {
    "length": "length in tokens",
    "ended": "ended by itself",
    "gain": "gain in reward",
    "win_rate": "win rate",
    "kl": "KL in nats",
}


def write_policy_report(
    report: PolicyReport, policy: Scored, start: Scored | None, facts: Mapping[str, str], out: Path
) -> Path:
    """Write ``report.html``, ``report.json`` and ``completions.jsonl`` (every completion with its reward) to a folder.

    Args:
        report: the numbers.
        policy, start: what was sampled.
        facts: what was evaluated on what, in words.
        out: made if it is not there.

    Returns:
        The path of the HTML file.
    """
    numbers = _plain({"facts": dict(facts), **dataclasses.asdict(report)})
    path = write_files(out, numbers, page(report, policy, start, facts))
    rows = _rows("policy", policy) + ([] if start is None else _rows("start", start))
    lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    (out / COMPLETIONS).write_text(lines, encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    """Without what only several training seeds have."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if not key.startswith("seed_")}
    return value


def _rows(model: str, scored: Scored) -> list[dict[str, Any]]:
    samples = scored.samples
    return [
        {
            "model": model,
            "prompt": prompt,
            "completion": sample.text,
            "reward": float(samples.rewards[i, k]),
            **{f"reward/{name}": float(values[i, k]) for name, values in scored.parts.items() if len(scored.parts) > 1},
            "tokens": len(sample.ids),
            "ended": sample.ended,
        }
        for i, (prompt, group) in enumerate(zip(samples.prompts, samples.groups, strict=True))
        for k, sample in enumerate(group)
    ]


def lines(report: PolicyReport) -> list[tuple[str, Estimate, Estimate | None]]:
    """Name, the policy's value, and the start's where it has one."""
    start = report.start or {}
    found = [(name, value, start.get(name)) for name, value in report.policy.items()]
    return found + [(name, getattr(report, name), None) for name in ("gain", "win_rate", "kl") if getattr(report, name)]


def written(name: str, value: float, *, signed: bool = False) -> str:
    """A number as its line shows it."""
    if name in SHARES:
        return f"{value:.1%}"
    places = 1 if name == "length" else 3
    # Adding 0 takes the sign from -0.0.
    return f"{round(value, places) + 0.0:{'+' if signed else ''}.{places}f}"


def _interval(name: str, value: Estimate) -> str:
    return f"{written(name, value.low, signed=name == 'gain')} to {written(name, value.high, signed=name == 'gain')}"


def printed(report: PolicyReport) -> RenderableType:
    """The same as a table for a terminal."""
    table = Table(f"{report.prompts} prompts, {report.n} completions each", "policy", "95 % interval")
    if report.start is not None:
        table.add_column("start")
    for name, value, other in lines(report):
        cells = [NAMES.get(name, name), written(name, value.mean, signed=name == "gain"), _interval(name, value)]
        table.add_row(*cells, *([] if report.start is None else ["" if other is None else written(name, other.mean)]))
    return Group(table, *(f"warning: {line}" for line in report.warnings))


def page(report: PolicyReport, policy: Scored, start: Scored | None, facts: Mapping[str, str]) -> str:
    """The HTML file."""
    body = (
        f"{_table(report)}<p class=soft>A prompt is one observation: its completions are averaged first. Intervals are "
        "95&nbsp;% t-intervals over prompts, and say nothing of how another training run would differ.</p>\n"
        f"<h2>What it says</h2>\n{_shown(policy, start)}"
    )
    return document("Policy report", _lead(report), report.warnings, body, facts)


def _lead(report: PolicyReport) -> str:
    own, rate = report.policy["reward"], report.win_rate
    text = f"Mean reward <b>{own.mean:.3f}</b> on {report.prompts} held-out prompts (95&nbsp;% interval "
    text += f"{own.low:.3f} to {own.high:.3f})"
    if rate is None:
        return text + "."
    return text + (
        f", {report.gain.mean:+.3f} against the start; it wins <b>{rate.mean:.1%}</b> of comparisons with the start "
        f"({rate.low:.1%} to {rate.high:.1%})."
    )


def _table(report: PolicyReport) -> str:
    compared = report.start is not None
    rows = "".join(
        f"<tr><th>{escape(NAMES.get(name, name))}</th><td>{written(name, value.mean, signed=name == 'gain')}</td>"
        f'<td class="soft number">{_interval(name, value)}</td>'
        + (f"<td>{'' if other is None else written(name, other.mean)}</td>" if compared else "")
        + f"<td class=soft>{escape(MEANINGS.get(name, 'without its weight'))}</td></tr>"
        for name, value, other in lines(report)
    )
    head = "<th></th><th>policy</th><th>95&nbsp;% interval</th>" + ("<th>start</th>" if compared else "") + "<th></th>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>\n"


def _shown(policy: Scored, start: Scored | None) -> str:
    """The first completion of each of some prompts, those of the highest and of the lowest gain."""
    rewards = policy.samples.rewards.mean(axis=1)
    order = (rewards if start is None else rewards - start.samples.rewards.mean(axis=1)).argsort(kind="stable")
    half = min(SHOWN, len(order)) // 2
    extremes = [*order[::-1][:half], *order[:half][::-1]]
    what = "mean reward" if start is None else "gain in mean reward"
    prompts = "prompt" if half == 1 else f"{half} prompts"
    parts = [
        f"<p class=soft>First the {prompts} of the highest {what}, then of the lowest; of each the first of "
        f"{policy.samples.rewards.shape[1]} completions, with its own reward. All of them are in {COMPLETIONS}.</p>\n"
    ]
    for i in extremes:
        said = "".join(
            f"<tr><th>{name}</th><td>{escape(one.samples.groups[i][0].text.strip())}</td>"
            f"<td>{written('reward', one.samples.rewards[i, 0])}</td></tr>"
            for name, one in (("policy", policy), ("start", start))
            if one is not None
        )
        prompt = escape(_prompt(policy.samples.prompts[i]))
        parts.append(f"<table class=said><thead><tr><th></th><th>{prompt}</th><th>reward</th></tr></thead>")
        parts.append(f"<tbody>{said}</tbody></table>\n")
    return "".join(parts)


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt.strip()
    return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in prompt)
