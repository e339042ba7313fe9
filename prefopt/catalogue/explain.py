"""What an algorithm is, in words: for the command line, the tables and the documentation."""

import dataclasses
import inspect
from typing import Any, NamedTuple

from prefopt import registry
from prefopt.catalogue.algorithms import ONLINE, Algorithm, algorithms, get_algorithm
from prefopt.objective import About


class Row(NamedTuple):
    """One line of the list of algorithms."""

    name: str
    data: str
    reference: str
    arxiv: str
    title: str


def listing(width: int = 80) -> list[str]:
    """All algorithms, one line of at most ``width`` characters each under a line of headings.

    The data they take (``prompts+reward`` for those that sample their own), whether they need a reference, the arXiv
    id, and the title of the paper, which is cut with an ellipsis where it does not fit.
    """
    table = [Row("name", "data", "ref", "arXiv", "paper"), *map(_row, algorithms())]
    wide = [max(len(row[column]) for row in table) for column in range(len(Row._fields) - 1)]
    lines = []
    for row in table:
        line = "  ".join([*(cell.ljust(size) for cell, size in zip(row, wide, strict=False)), row.title])
        lines.append(line if len(line) <= width else line[: max(width - 1, 1)].rstrip() + "…")
    return lines


def _row(name: str) -> Row:
    if name in ONLINE:
        about = ONLINE[name].about
        return Row(name, "prompts+reward", "no", about.arxiv or "-", about.title)
    entry = registry.lookup(name)
    needs, about = entry.cls.needs, entry.cls.about
    return Row(name, needs.batch.kind, "yes" if needs.reference else "no", about.arxiv or "-", about.title)


def explain(name: str) -> str:
    """Formula, paper, data, hyperparameters with defaults and bounds, and learning rates of an algorithm, as text.

    Raises:
        UsageError: an unknown or ambiguous name.
    """
    algorithm = get_algorithm(name)
    about, needs = algorithm.about, algorithm.objective.needs
    lines = [f"{algorithm.name}: {about.title}{_source(about)}", "", f"  loss       {about.formula}"]
    lines.append(f"  data       {_data(algorithm)}")
    lines.append(f"  reference  {'needed' if needs.reference else 'not needed'}")
    if about.use:
        lines.append(f"  use        {about.use}")
    also = [alias for alias, target in registry.ALIASES.items() if target == algorithm.name]
    if also:
        lines.append(f"  also       {', '.join(also)}")
    if algorithm.parts:
        lines.append(f"  parts      {', '.join(dict.fromkeys(algorithm.parts))}: `prefopt explain` each")
    elif not algorithm.online:
        lines += [f"  evidence   {line}" for line in _evidence(algorithm.name)]
    recipe = algorithm.recipe
    lines.append(f"  rate       {recipe.full:g} for a full fine-tune, {recipe.adapter:g} for LoRA and QLoRA")
    fields = dataclasses.fields(algorithm.selection if algorithm.online else algorithm.objective)
    if algorithm.parts:
        return "\n".join([*lines, "", "  hyperparameters stand in brackets after the part that has them"])
    lines += ["", "  hyperparameters" if fields else "  no hyperparameters"]
    values = algorithm.hyperparameters
    lines += [f"    {f.name} = {values[f.name]!r}{_bounds(f)}: {f.metadata.get('help', '')}" for f in fields]
    text = inspect.getdoc(type(algorithm.selection) if algorithm.online else type(algorithm.objective))
    return "\n".join([*lines, "", text or ""])


def _evidence(name: str) -> list[str]:
    """What speaks for the loss being the paper's; nothing is known of other people's objectives."""
    from prefopt.verify.evidence import evidence

    found = [f"{one.kind}: {one.what}" for one in evidence(name)]
    return found or ["none besides agreement with its own reference; `prefopt verify` checks the contract"]


def _source(about: About) -> str:
    known = [f"arXiv {about.arxiv}"] * bool(about.arxiv) + [str(about.year)] * bool(about.year)
    return f" ({', '.join(known)})" if known else ""


def _data(algorithm: Algorithm) -> str:
    return f"{algorithm.data_kind} and a reward" if algorithm.online else algorithm.data_kind


def _bounds(field: Any) -> str:
    meta = field.metadata
    if meta.get("choices"):
        return f" (one of {', '.join(meta['choices'])})"
    signs = {"above": ">", "at_least": "≥", "below": "<", "at_most": "≤"}
    parts = [f"{sign} {meta[key]:g}" for key, sign in signs.items() if meta.get(key) is not None]
    return f" ({', '.join(parts)})" if parts else ""
