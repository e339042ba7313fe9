"""What an algorithm is, in words: for the command line, the tables and the documentation."""

import dataclasses
import inspect
from typing import Any, NamedTuple

from prefopt import registry
from prefopt.catalogue.algorithms import ONLINE, Algorithm, algorithms, get_algorithm


class Row(NamedTuple):
    """One line of the list of algorithms."""

    name: str
    data: str
    reference: bool
    arxiv: str
    title: str


def listing() -> list[Row]:
    """All algorithms with the data they take, whether they need a reference, and their paper."""
    rows = []
    for name in algorithms():
        if name in ONLINE:
            about, data, reference = ONLINE[name].about, "prompts + reward", False
        else:
            entry = registry.lookup(name)
            about, data, reference = entry.cls.about, entry.cls.needs.batch.kind, entry.cls.needs.reference
        rows.append(Row(name, data, reference, about.arxiv, about.title))
    return rows


def explain(name: str) -> str:
    """Formula, paper, data, hyperparameters with defaults and bounds, and learning rates of an algorithm, as text.

    Raises:
        UsageError: an unknown or ambiguous name.
    """
    algorithm = get_algorithm(name)
    about, needs = algorithm.about, algorithm.objective.needs
    source = f"arXiv {about.arxiv}, {about.year}" if about.arxiv else str(about.year)
    lines = [f"{algorithm.name}: {about.title} ({source})", "", f"  loss       {about.formula}"]
    lines.append(f"  data       {_data(algorithm)}")
    lines.append(f"  reference  {'needed' if needs.reference else 'not needed'}")
    if about.use:
        lines.append(f"  use        {about.use}")
    also = [alias for alias, target in registry.ALIASES.items() if target == algorithm.name]
    if also:
        lines.append(f"  also       {', '.join(also)}")
    if not algorithm.online:
        lines += [f"  evidence   {line}" for line in _evidence(algorithm.name)]
    recipe = algorithm.recipe
    lines.append(f"  rate       {recipe.full:g} for a full fine-tune, {recipe.adapter:g} for LoRA and QLoRA")
    fields = dataclasses.fields(algorithm.selection if algorithm.online else algorithm.objective)
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


def _data(algorithm: Algorithm) -> str:
    return f"{algorithm.data_kind} and a reward" if algorithm.online else algorithm.data_kind


def _bounds(field: Any) -> str:
    meta = field.metadata
    if meta.get("choices"):
        return f" (one of {', '.join(meta['choices'])})"
    signs = {"above": ">", "at_least": "≥", "below": "<", "at_most": "≤"}
    parts = [f"{sign} {meta[key]:g}" for key, sign in signs.items() if meta.get(key) is not None]
    return f" ({', '.join(parts)})" if parts else ""
