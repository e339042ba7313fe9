"""Numbers that come with completions: which ones an objective reads, and whether the data has them."""

from collections.abc import Sequence
from dataclasses import replace

from prefopt.core.errors import DataError
from prefopt.data.tokenize import TokenizedExample

OPTIONAL = ("preference", "chosen_score", "rejected_score", "rated_margin", "scores")
_COLUMNS = {
    "pairs": {
        "preference": ("preference",),
        "chosen_score": ("score_chosen",),
        "rejected_score": ("score_rejected",),
        "rated_margin": ("margin",),
        "scores": ("score_chosen", "score_rejected"),
    },
    "ranked": {
        "preference": ("preference",),
        "rated_margin": ("margin",),
        **dict.fromkeys(("chosen_score", "rejected_score", "scores"), ("scores",)),
    },
}
"""Kind of the layout → label → the columns that would give it."""
_MEANINGS = {
    "preference": "P(chosen is better), 0 to 1",
    "margin": "by how much chosen is better",
    "scores": "a list with one number for each completion",
}


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


def comparable(examples: Sequence[TokenizedExample], reader: str) -> tuple[list[TokenizedExample], dict[str, int]]:
    """Without rankings of a single completion, and how many those were.

    Raises:
        DataError: there are no others.
    """
    kept = [example for example in examples if "ranks" not in example.labels or len(example.completions) > 1]
    if len(kept) == len(examples):
        return kept, {}
    if not kept:
        raise DataError(
            f"{reader} compares completions of one prompt, and every row holds one with a rating: put the completions "
            "of a prompt into one row (columns 'completions' and 'scores'), or train with reward_regression."
        )
    return number(kept), {"with a single completion, which has nothing to be compared with": len(examples) - len(kept)}


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
