"""What the algorithms are, for people: names, a list, and an explanation of each. No torch, if the index has it all."""

from typing import NamedTuple

from prefopt.algorithms import index
from prefopt.algorithms.card import Card, head


class Row(NamedTuple):
    """One line of the list of algorithms."""

    name: str
    data: str
    reference: str
    arxiv: str
    title: str


def algorithms() -> list[str]:
    """The names of all algorithms, sorted."""
    if index.is_complete():
        return sorted(index.indexed())
    from prefopt.algorithms.algorithm import all_names

    return all_names()


def list_algorithms(width: int = 80) -> list[str]:
    """All algorithms, one line of at most ``width`` characters each under a line of headings.

    The data they take (``prompts+reward`` for those that sample their own), whether they need a reference, the arXiv
    id, and the title of the paper, which is cut with an ellipsis where it does not fit.
    """
    cards = _cards()
    table = [Row("name", "data", "ref", "arXiv", "paper"), *(_row(cards[name]) for name in sorted(cards))]
    wide = [max(len(row[column]) for row in table) for column in range(len(Row._fields) - 1)]
    lines = []
    for row in table:
        line = "  ".join([*(cell.ljust(size) for cell, size in zip(row, wide, strict=False)), row.title])
        lines.append(line if len(line) <= width else line[: max(width - 1, 1)].rstrip() + "…")
    return lines


def explain(name: str) -> str:
    """An algorithm as text: formula, paper, data, evidence, recipe, tuning ranges, and hyperparameters with bounds.

    Raises:
        UsageError: An unknown or ambiguous name.
    """
    card = _indexed(name)
    if card is not None:
        texts = [index.docstring(one) for one in card.documented]
    else:
        from prefopt.algorithms.algorithm import get_algorithm
        from prefopt.algorithms.describe import describe, docstrings

        algorithm = get_algorithm(name)
        card, texts = describe(algorithm), docstrings(algorithm)
    return "\n".join([*head(card), "", "\n\n".join(filter(None, texts))]).rstrip()


def _cards() -> dict[str, Card]:
    if index.is_complete():
        return index.indexed()
    from prefopt.algorithms.describe import all_cards

    return all_cards()


def _indexed(name: str) -> Card | None:
    """The card of one of prefopt's own algorithms, by name or alias; None for anything else, such as a sum."""
    cards = index.indexed()
    if name in cards:
        return cards[name]
    return next((card for card in cards.values() if name in card.aliases), None)


def _row(card: Card) -> Row:
    data = "prompts+reward" if card.online else card.data
    return Row(card.name, data, "yes" if card.reference else "no", card.arxiv or "-", card.title)
