"""One kind of example as another, where that is honest."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from prefopt.core.errors import DataError, UsageError, did_you_mean
from prefopt.core.labels import LABELS, carried
from prefopt.data.examples import (
    KINDS,
    DemonstrationExample,
    Example,
    LabelledExample,
    PairExample,
    PromptExample,
    RankedExample,
)
from prefopt.data.messages import as_messages, key_of, split_last

SOURCES: dict[str, tuple[str, ...]] = {
    "pairs": ("pairs", "ranked"),
    "labelled": ("labelled", "pairs", "ranked"),
    "ranked": ("ranked", "pairs"),
    "demonstrations": ("demonstrations", "pairs", "labelled", "ranked"),
    "prompts": ("prompts", "pairs", "labelled", "ranked", "demonstrations"),
}
"""Kind → the kinds that can become it."""

Converted = tuple[list[Example], str]

_SIDE_SCORES = LABELS["scores"].derived["pairs"]
"""The labels of a pair that make the scores of a ranking of two: of chosen and of rejected."""


def convert(examples: Sequence[Example], kind: str, pairs: str = "all") -> Converted:
    """Read examples as another kind.

    Pairs become labelled rows (two of each), rankings of two, or demonstrations (the chosen ones). Rankings become
    pairs or demonstrations (the best ones). Labelled rows become demonstrations where all are desirable; anything
    becomes prompts, each once.

    Args:
        examples: all of one kind.
        kind: ``"pairs"``, ``"labelled"``, ``"ranked"``, ``"demonstrations"`` or ``"prompts"``.
        pairs: how a ranking becomes pairs: ``"all"`` or ``"best-worst"``, as in `DataSettings`.

    Returns:
        The examples, and one line about the conversion to show to the user (empty if there was none).

    Raises:
        DataError: the conversion would invent or distort labels.
        UsageError: an unknown kind.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no data kind {kind!r}.{did_you_mean(kind, KINDS)} It is one of {', '.join(KINDS)}.")
    if not examples or examples[0].kind == kind:
        return list(examples), ""
    source = examples[0].kind
    if kind == "prompts":
        return _prompts(examples, source)
    if source == "ranked" and kind in ("pairs", "labelled"):
        return _ranked_to_pairs(examples, pairs) if kind == "pairs" else _ranked_to_labelled(examples, pairs)
    way = _WAYS.get((source, kind))
    if way is None:
        raise DataError(
            f"{source} cannot be read as {kind}: {_WHY[kind]}. Use an algorithm for {source}, or other data."
        )
    return way(examples)


_WHY = {
    "pairs": "a pair needs two completions of one prompt, a chosen and a rejected one",
    "labelled": "each completion needs a label, desirable or not",
    "ranked": "a ranking needs several completions of one prompt, with scores or ranks",
    "demonstrations": "there are no completions to imitate",
}


def _kept(example: Example, kind: str) -> dict[str, Any]:
    """What an example of another kind has from this one besides its texts."""
    return {"labels": carried(example.labels, kind), "columns": example.columns, "row": example.row}


def _pairs_to_labelled(examples: Sequence[PairExample]) -> Converted:
    rows = [
        LabelledExample(pair.prompt, side, desirable, **_kept(pair, "labelled"))
        for pair in examples
        for side, desirable in ((pair.chosen, True), (pair.rejected, False))
    ]
    return rows, f"{len(examples)} pairs read as {len(rows)} labelled rows: chosen desirable, rejected undesirable"


def _pairs_to_ranked(examples: Sequence[PairExample]) -> Converted:
    rows = []
    for pair in examples:
        scores = tuple(pair.labels.get(name) for name in _SIDE_SCORES)
        sides = pair.chosen, pair.rejected
        known = None if None in scores else scores
        rows.append(RankedExample(pair.prompt, sides, known, (1, 2), **_kept(pair, "ranked")))
    return rows, f"{len(rows)} pairs read as rankings of two"


def _pairs_to_demonstrations(examples: Sequence[PairExample]) -> Converted:
    rows = [DemonstrationExample(pair.prompt, pair.chosen, **_kept(pair, "demonstrations")) for pair in examples]
    return rows, f"{len(rows)} pairs read as demonstrations: the chosen completions"


def _labelled_to_demonstrations(examples: Sequence[LabelledExample]) -> Converted:
    bad = sum(not row.desirable for row in examples)
    if bad:
        raise DataError(
            f"labelled rows can be imitated only where all are desirable; {bad} of {len(examples)} are not. Filter "
            "them out, or, if the label column means something else, name the layout in data.format."
        )
    rows = [DemonstrationExample(row.prompt, row.completion, **_kept(row, "demonstrations")) for row in examples]
    return rows, f"{len(rows)} labelled rows read as demonstrations: all are desirable"


def _ranked_to_demonstrations(examples: Sequence[RankedExample]) -> Converted:
    rows = [
        DemonstrationExample(row.prompt, row.completions[row.judged[0]], **_kept(row, "demonstrations"))
        for row in examples
    ]
    return rows, f"{len(rows)} rankings read as demonstrations: the best completions"


def _ranked_to_pairs(examples: Sequence[RankedExample], pairs: str) -> Converted:
    made = [_split(row, pairs) for row in examples]
    rows = [pair for group in made for pair in group]
    which = "every two completions that are not tied" if pairs == "all" else "the best against the worst"
    tied = sum(not group for group in made)
    if not rows:
        raise DataError(f"no pair can be made of {len(examples)} rankings: all their completions are tied.")
    note = f"{len(examples)} rankings read as {len(rows)} pairs: {which}"
    return rows, note + (f" ({tied} rankings state no preference)" if tied else "")


def _split(row: RankedExample, pairs: str) -> list[PairExample]:
    """The preferences that a ranking states, or the widest of them."""
    order, standing, kept = row.judged, row.standing, _kept(row, "pairs")
    couples = combinations(order, 2) if pairs == "all" else [(order[0], order[-1])] if order else []
    pairs_made = []
    for better, worse in couples:
        if standing[better] > standing[worse]:
            scores = () if row.scores is None else (row.scores[better], row.scores[worse])
            known = {name: score for name, score in zip(_SIDE_SCORES, scores, strict=False) if score is not None}
            labels = {**kept["labels"], **known}
            sides = row.completions[better], row.completions[worse]
            pairs_made.append(PairExample(row.prompt, *sides, **{**kept, "labels": labels}))
    return pairs_made


def _ranked_to_labelled(examples: Sequence[RankedExample], pairs: str) -> Converted:
    """Only where each ranking is a pair, or the user says that its extremes may stand for it."""
    if pairs == "all" and any(len(row.judged) != 2 or not _split(row, pairs) for row in examples):
        raise DataError(
            "a ranking says which completion is better, not which one is desirable. Take the best as desirable and the "
            "worst as undesirable with data.pairs='best-worst', or use an algorithm for ranked data or pairs."
        )
    couples, note = _ranked_to_pairs(examples, pairs)
    rows, after = _pairs_to_labelled(couples)
    return rows, f"{note}; {after}"


_WAYS: dict[tuple[str, str], Callable[[Sequence], Converted]] = {
    ("pairs", "labelled"): _pairs_to_labelled,
    ("pairs", "ranked"): _pairs_to_ranked,
    ("pairs", "demonstrations"): _pairs_to_demonstrations,
    ("labelled", "demonstrations"): _labelled_to_demonstrations,
    ("ranked", "demonstrations"): _ranked_to_demonstrations,
}


def _prompts(examples: Sequence[Example], source: str) -> Converted:
    unique: dict[str, PromptExample] = {}
    for example in examples:
        prompt, columns = example.prompt, dict(example.columns)
        if isinstance(example, DemonstrationExample) and not isinstance(example.completion, str):
            # Of a longer conversation the last answer is the one to write again.
            prompt, _ = split_last([*as_messages(prompt, "user"), *example.completion])
        # A reward function may want the answers that are known; a column of the data keeps its name.
        for name in ("completion", "chosen", "rejected", "completions"):
            if hasattr(example, name):
                columns.setdefault(name, getattr(example, name))
        unique.setdefault(key_of(prompt), PromptExample(prompt, columns=columns, row=example.row))
    rows = list(unique.values())
    repeated = len(examples) - len(rows)
    note = f"{len(examples)} {source} read as {len(rows)} prompts" + (f", {repeated} repeated" if repeated else "")
    return rows, note
