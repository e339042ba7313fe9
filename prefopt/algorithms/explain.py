"""What an algorithm is, in words: for the command line, the tables and the documentation."""

import dataclasses
import inspect
from typing import Any, NamedTuple

from prefopt.algorithms.algorithm import Algorithm, algorithms, get_algorithm
from prefopt.algorithms.evidence import evidence
from prefopt.algorithms.online import online_algorithms
from prefopt.core import registry
from prefopt.core.needs import About


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
    if name in online_algorithms():
        algorithm = get_algorithm(name)
        reference = "yes" if algorithm.needs_reference else "no"
        return Row(name, "prompts+reward", reference, algorithm.about.arxiv or "-", algorithm.about.title)
    entry = registry.lookup(name)
    needs, about = entry.cls.needs, entry.cls.about
    return Row(name, needs.batch.kind, "yes" if needs.reference else "no", about.arxiv or "-", about.title)


def explain(name: str) -> str:
    """Formula, paper, data, hyperparameters with defaults and bounds, and learning rates of an algorithm, as text.

    Raises:
        UsageError: an unknown or ambiguous name.
    """
    algorithm = get_algorithm(name)
    about = algorithm.about
    lines = [f"{algorithm.name}: {about.title}{_source(about)}", "", f"  loss       {about.formula}"]
    lines.append(f"  data       {_data(algorithm)}")
    lines.append(f"  reference  {'needed' if algorithm.needs_reference else 'not needed'}")
    if about.use:
        lines.append(f"  use        {about.use}")
    online = online_algorithms().get(algorithm.name)
    also = [alias for alias, target in registry.ALIASES.items() if target == algorithm.name and not online]
    also += online.aliases if online else ()
    if also:
        lines.append(f"  also       {', '.join(also)}")
    if algorithm.parts:
        lines.append(f"  parts      {', '.join(dict.fromkeys(algorithm.parts))}: `prefopt explain` each")
    else:
        lines += [f"  evidence   {line}" for line in _evidence(algorithm.objective.name)]
    recipe = algorithm.recipe
    lines.append(f"  rate       {recipe.full:g} for a full fine-tune, {recipe.adapter:g} for LoRA and QLoRA")
    if algorithm.parts:
        return "\n".join([*lines, "", "  hyperparameters stand in brackets after the part that has them"])
    lines += ["", *_hyperparameters(algorithm)]
    texts = [inspect.getdoc(type(one)) or "" for one in (algorithm.source, algorithm.objective) if one is not None]
    return "\n".join([*lines, "", "\n\n".join(texts)])


def _hyperparameters(algorithm: Algorithm) -> list[str]:
    found = [(field, getattr(one, field.name)) for one in algorithm.settings for field in dataclasses.fields(one)]
    if not found:
        return ["  no hyperparameters"]
    lines = [
        f"    {field.name} = {value!r}{_bounds(field)}: {field.metadata.get('help', '')}" for field, value in found
    ]
    if algorithm.name == "online":
        lines.insert(0, "    objective = 'dpo': the pairwise loss, with its hyperparameters in brackets or beside it")
    return ["  hyperparameters", *lines]


def _evidence(name: str) -> list[str]:
    """What speaks for the loss being the paper's; nothing is known of other people's objectives."""
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
