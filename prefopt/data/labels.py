"""Numbers that come with completions: which ones an objective reads, and whether the data has them."""

from collections.abc import Sequence
from dataclasses import replace

from prefopt.data.tokenise import TokenizedExample
from prefopt.errors import DataError

OPTIONAL = ("preference", "chosen_score", "rejected_score", "scores")
_COLUMNS = {
    "pairs": {
        "preference": ("preference",),
        "chosen_score": ("score_chosen",),
        "rejected_score": ("score_rejected",),
        "scores": ("score_chosen", "score_rejected"),
    },
    "ranked": {"preference": ("preference",), **dict.fromkeys(OPTIONAL[1:], ("scores",))},
}
"""Kind of the layout → label → the columns that would give it."""
_MEANINGS = {"preference": "P(chosen is better), 0 to 1", "scores": "a list with one number for each completion"}


def demand(
    examples: Sequence[TokenizedExample], wanted: Sequence[str], reader: str, layout: str = "pairs"
) -> tuple[list[TokenizedExample], dict[str, int]]:
    """The examples that have all labels that are wanted, and how many were dropped for which reason.

    Args:
        examples: tokenised.
        wanted: names of labels.
        reader: whose wish it is, for the message.
        layout: kind of the layout that the data was read as.

    Raises:
        DataError: no example has them all; it names the columns to add.
    """
    kept = [example for example in examples if all(name in example.labels for name in wanted)]
    if len(kept) == len(examples):
        return kept, {}
    known = _COLUMNS.get(layout, {})
    lacking = [name for name in wanted if not all(name in example.labels for example in examples)]
    columns = list(dict.fromkeys(column for name in lacking for column in known.get(name, (name,))))
    if not kept:
        what = " and ".join(map(repr, columns))
        meaning = _MEANINGS.get(columns[0], "numbers, higher is better")
        these, them = ("this column", "it") if len(columns) == 1 else ("these columns", "them")
        raise DataError(
            f"{reader} needs {what} ({meaning}), which no row has: add {these}, or rename yours to {them} with "
            "data.columns."
        )
    reason = "without " + " or ".join(map(repr, columns))
    return number(kept), {reason: len(examples) - len(kept)}


def settle(examples: Sequence[TokenizedExample]) -> tuple[list[TokenizedExample], list[str]]:
    """Examples that all have the same labels, so that what one says does not depend on its neighbours in a batch.

    Returns:
        The examples, and a line about each label that only some of them had.
    """
    partial = {
        name: sum(name in example.labels for example in examples)
        for name in OPTIONAL
        if len({name in example.labels for example in examples}) == 2
    }
    if not partial:
        return list(examples), []
    notes = [f"{name!r} is known for {n} of {len(examples)} rows only, and is not used" for name, n in partial.items()]
    return [
        replace(each, labels={name: value for name, value in each.labels.items() if name not in partial})
        for each in examples
    ], notes


def number(examples: Sequence[TokenizedExample]) -> list[TokenizedExample]:
    """The examples with their places as ids."""
    return [replace(each, id=place) for place, each in enumerate(examples)]
