"""Which labels an objective reads, and whether the data has them. What a label is stands in `prefopt.core.labels`."""

from collections.abc import Sequence
from dataclasses import replace

from prefopt.core.errors import DataError
from prefopt.core.labels import Axis, columns_of, meaning_of, optional_labels
from prefopt.data.reasons import Cause, Reason, Skipped
from prefopt.data.tokenize import TokenizedExample

Kept = tuple[list[TokenizedExample], list[Skipped]]
"""Examples that are kept, and the rows of the others with the cause."""


def require_labels(
    examples: Sequence[TokenizedExample], wanted: Sequence[str], reader: str, layout: str = "pairs"
) -> Kept:
    """Keep the examples that have all labels that are wanted.

    Args:
        examples: Tokenized examples.
        wanted: Names of labels.
        reader: The objective or algorithm that reads them, for the message.
        layout: The kind of the layout that the data was read as.

    Raises:
        DataError: No example has them all; it names the columns to add.
    """
    lacking = [name for name in wanted if not all(name in example.labels for example in examples)]
    columns = list(dict.fromkeys(column for name in lacking for column in columns_of(name, layout)))
    kept, skipped = _split(
        examples,
        [all(name in example.labels for name in wanted) for example in examples],
        Cause.of(Reason.LACKS_LABELS, columns=" or ".join(map(repr, columns))),
    )
    if skipped and not kept:
        these, them = ("this column", "it") if len(columns) == 1 else ("these columns", "them")
        raise DataError(
            f"{reader} needs {' and '.join(map(repr, columns))} ({meaning_of(lacking[0], layout)}), which no row has: "
            f"add {these}, or rename yours to {them} with data.columns."
        )
    return kept, skipped


def without_singles(examples: Sequence[TokenizedExample], reader: str) -> Kept:
    """Leave out rankings of a single completion, for a reader that compares the completions of a prompt.

    Raises:
        DataError: There are no others.
    """
    compared = ["ranks" not in example.labels or len(example.completions) > 1 for example in examples]
    kept, skipped = _split(examples, compared, Cause(Reason.SINGLE))
    if skipped and not kept:
        raise DataError(
            f"{reader} compares completions of one prompt, and every row holds one with a rating: put the completions "
            "of a prompt into one row (columns 'completions' and 'scores'), or train with reward_regression."
        )
    return kept, skipped


def finish_labels(examples: Sequence[TokenizedExample]) -> tuple[list[TokenizedExample], list[str]]:
    """Give all examples the same labels, so that what one says does not depend on its neighbours in a batch.

    Returns:
        The examples, and a line about each label that only some of them had and that is therefore not used.
    """
    partial = {
        name: sum(name in example.labels for example in examples)
        for name in optional_labels(Axis.EXAMPLE, Axis.COMPLETION)
        if len({name in example.labels for example in examples}) == 2
    }
    if not partial:
        return list(examples), []
    notes = [f"{name!r} is known for {n} of {len(examples)} rows only, and is not used" for name, n in partial.items()]
    return [
        replace(each, labels={name: value for name, value in each.labels.items() if name not in partial})
        for each in examples
    ], notes


def _split(examples: Sequence[TokenizedExample], keep: Sequence[bool], cause: Cause) -> Kept:
    """The examples to keep, numbered anew where some are left out, and the rows of the others."""
    if all(keep):
        return list(examples), []
    kept = [example for example, own in zip(examples, keep, strict=True) if own]
    skipped = [(example.row, cause) for example, own in zip(examples, keep, strict=True) if not own]
    return [replace(each, id=place) for place, each in enumerate(kept)], skipped
