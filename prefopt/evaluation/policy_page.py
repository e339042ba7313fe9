"""The report on a policy as one HTML file that asks nothing of the network, as JSON, and as a table to print."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from prefopt.evaluation.page import percent, render, write_files
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
        return percent(value)
    places = 1 if name == "length" else 3
    # Adding 0 takes the sign from -0.0.
    return f"{round(value, places) + 0.0:{'+' if signed else ''}.{places}f}"


def _interval(name: str, value: Estimate) -> str:
    return f"{written(name, value.low, signed=name == 'gain')} to {written(name, value.high, signed=name == 'gain')}"


def printed(report: PolicyReport) -> RenderableType:
    """The same as a table for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"{report.prompts} prompts, {report.n} completions each", overflow="fold")
    for heading in ("policy", "95 % interval", *(["start"] if report.start is not None else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, value, other in lines(report):
        cells = [NAMES.get(name, name), written(name, value.mean, signed=name == "gain"), _interval(name, value)]
        table.add_row(*cells, *([] if report.start is None else ["" if other is None else written(name, other.mean)]))
    return Group(table, *(f"warning: {line}" for line in report.warnings))


def page(report: PolicyReport, policy: Scored, start: Scored | None, facts: Mapping[str, str]) -> str:
    """The HTML file."""
    rewards = policy.samples.rewards.mean(axis=1)
    means = rewards if start is None else rewards - start.samples.rewards.mean(axis=1)
    order = means.argsort(kind="stable")
    half = min(SHOWN, len(order)) // 2
    models = [("policy", policy)] if start is None else [("policy", policy), ("start", start)]
    return render(
        "policy_report.html",
        report=report,
        rows=[
            {
                "name": NAMES.get(name, name),
                "meaning": MEANINGS.get(name, "without its weight"),
                "value": written(name, value.mean, signed=name == "gain"),
                "interval": _interval(name, value),
                "start": "" if other is None else written(name, other.mean),
            }
            for name, value, other in lines(report)
        ],
        half=half,
        ordered_by="mean reward" if start is None else "gain in mean reward",
        # Those of the highest mean first, then those of the lowest.
        examples=[_example(int(i), means[i], models) for i in [*order[::-1][:half], *order[:half][::-1]]],
        completions_file=COMPLETIONS,
        warnings=report.warnings,
        facts=facts,
    )


def _example(i: int, mean: float, models: Sequence[tuple[str, Scored]]) -> dict[str, Any]:
    """A prompt with the first completion of each model; ``mean`` is what the examples are ordered by."""
    completions = [
        {
            "name": name,
            "text": scored.samples.groups[i][0].text.strip(),
            "reward": written("reward", scored.samples.rewards[i, 0]),
        }
        for name, scored in models
    ]
    return {
        "prompt": _prompt(models[0][1].samples.prompts[i]),
        "ordered_by": written("reward", mean, signed=len(models) > 1),
        "completions": completions,
    }


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt.strip()
    return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in prompt)
