"""What lists and explanations say of an algorithm, as plain data that needs no torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from prefopt.core.recipe import Published, Range, Recipe


@dataclass(frozen=True)
class Hyperparameter:
    """One hyperparameter in words.

    Attributes:
        name: Its name.
        default: The default, as Python writes it.
        bounds: The allowed values; empty if there are no bounds.
        help: The meaning.
        tune: Where to tune it; None if no range is declared.
    """

    name: str
    default: str
    bounds: str
    help: str
    tune: Range | None = None


@dataclass(frozen=True, kw_only=True)
class Card:
    """An algorithm in words.

    Attributes:
        name: The name.
        data: The kind of data it takes.
        online: Whether it samples its own completions, and so needs a reward.
        reference: Whether it needs a reference model.
        title, year, arxiv, formula, use: See `About`.
        aliases: Other names.
        parts: The summands of a weighted sum.
        evidence: One line for each piece, strongest first.
        recipe: How it is trained.
        hyperparameters: In the order of their declaration.
        documented: The classes whose docstrings say more, as ``module:Class``.
    """

    name: str
    data: str
    online: bool
    reference: bool
    title: str
    year: int
    arxiv: str
    formula: str
    use: str
    aliases: tuple[str, ...]
    parts: tuple[str, ...]
    evidence: tuple[str, ...]
    recipe: Recipe
    hyperparameters: tuple[Hyperparameter, ...]
    documented: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The card that `to_json` wrote."""
        recipe = data["recipe"] | {
            "paper": Published(**data["recipe"]["paper"]),
            "tune": Range(**data["recipe"]["tune"]),
        }
        hyperparameters = tuple(
            Hyperparameter(**(one | {"tune": Range(**one["tune"]) if one["tune"] else None}))
            for one in data["hyperparameters"]
        )
        lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
        return cls(**(data | lists | {"recipe": Recipe(**recipe), "hyperparameters": hyperparameters}))


def head(card: Card) -> list[str]:
    """The lines of an explanation above the docstrings."""
    about = [f"arXiv {card.arxiv}"] * bool(card.arxiv) + [str(card.year)] * bool(card.year)
    source = f" ({', '.join(about)})" if about else ""
    rows = [
        ("loss", card.formula),
        ("data", f"{card.data} and a reward" if card.online else card.data),
        ("reference", "needed" if card.reference else "not needed"),
        ("use", card.use),
        ("also", ", ".join(card.aliases)),
    ]
    if card.parts:
        rows.append(("parts", f"{', '.join(dict.fromkeys(card.parts))}: `prefopt explain` each"))
    else:
        none = "none declared; `prefopt verify` checks the contract of a loss"
        rows += [("evidence", line) for line in card.evidence or (none,)]
    rows += _recipe(card)
    lines = [f"{card.name}: {card.title}{source}", "", *(f"  {key:<9}  {text}" for key, text in rows if text)]
    if card.parts:
        return [*lines, "", "  hyperparameters stand in brackets after the part that has them"]
    if not card.hyperparameters:
        return [*lines, "", "  no hyperparameters"]
    own = [f"    {one.name} = {one.default}{one.bounds}: {one.help}" for one in card.hyperparameters]
    return [*lines, "", "  hyperparameters", *own]


def _recipe(card: Card) -> list[tuple[str, str]]:
    """How it is trained here, how the paper trains it, why the two differ, and where to tune."""
    recipe, paper = card.recipe, card.recipe.paper
    if not recipe.declared:
        return [("recipe", f"none declared; prefopt's defaults: {recipe.in_words()}"), ("tune", _tune(card))]
    known = {"learning rate": paper.rate, "batch": paper.batch, **paper.values}
    said = [f"{name} {value:g}" for name, value in known.items() if value is not None]
    of_paper = f"{', '.join(said)} ({paper.source})" if said else ""
    return [("recipe", recipe.in_words()), ("paper", of_paper), ("note", recipe.reason), ("tune", _tune(card))]


def _tune(card: Card) -> str:
    ranges = {"learning rate": card.recipe.tune} | {one.name: one.tune for one in card.hyperparameters if one.tune}
    said = [
        f"{name} {one.low:g} to {one.high:g}{f' ({one.source})' * bool(one.source)}" for name, one in ranges.items()
    ]
    return f"{', '.join(said)}; evenly in the logarithm"
