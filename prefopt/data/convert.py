"""One kind of example as another, where that is honest."""

from collections.abc import Sequence

from prefopt.data.examples import KINDS, DemonstrationExample, Example, LabelledExample, PairExample, PromptExample
from prefopt.data.messages import as_messages, key_of, split_last
from prefopt.errors import DataError, UsageError, did_you_mean

SOURCES: dict[str, tuple[str, ...]] = {
    "pairs": ("pairs",),
    "labelled": ("labelled", "pairs"),
    "demonstrations": ("demonstrations", "pairs", "labelled"),
    "prompts": ("prompts", "pairs", "labelled", "demonstrations"),
}
"""Kind → the kinds that can become it."""


def convert(examples: Sequence[Example], kind: str) -> tuple[list[Example], str]:
    """Read examples as another kind.

    Pairs become labelled rows (two of each) or demonstrations (the chosen ones); labelled rows become demonstrations
    where all are desirable; anything becomes prompts, each once.

    Args:
        examples: all of one kind.
        kind: ``"pairs"``, ``"labelled"``, ``"demonstrations"`` or ``"prompts"``.

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
    if (source, kind) == ("pairs", "labelled"):
        rows = [row for pair in examples for row in _label_both(pair)]
        return rows, f"{len(examples)} pairs read as {len(rows)} labelled rows: chosen desirable, rejected undesirable"
    if (source, kind) == ("pairs", "demonstrations"):
        rows = [DemonstrationExample(pair.prompt, pair.chosen, pair.columns) for pair in examples]
        return rows, f"{len(rows)} pairs read as demonstrations: the chosen completions"
    if (source, kind) == ("labelled", "demonstrations"):
        return _desirable(examples)
    raise DataError(f"{source} cannot be read as {kind}: {_WHY[kind]}. Use an algorithm for {source}, or other data.")


_WHY = {
    "pairs": "a pair needs two completions of one prompt, a chosen and a rejected one",
    "labelled": "each completion needs a label, desirable or not",
    "demonstrations": "there are no completions to imitate",
}


def _label_both(pair: PairExample) -> tuple[LabelledExample, LabelledExample]:
    return (
        LabelledExample(pair.prompt, pair.chosen, True, pair.columns),
        LabelledExample(pair.prompt, pair.rejected, False, pair.columns),
    )


def _desirable(examples: Sequence[LabelledExample]) -> tuple[list[Example], str]:
    bad = sum(not row.desirable for row in examples)
    if bad:
        raise DataError(
            f"labelled rows can be imitated only where all are desirable; {bad} of {len(examples)} are not. Filter "
            "them out, or, if the label column means something else, name the layout in data.format."
        )
    rows = [DemonstrationExample(row.prompt, row.completion, row.columns) for row in examples]
    return rows, f"{len(rows)} labelled rows read as demonstrations: all are desirable"


def _prompts(examples: Sequence[Example], source: str) -> tuple[list[Example], str]:
    unique: dict[str, PromptExample] = {}
    for example in examples:
        prompt, columns = example.prompt, dict(example.columns)
        if isinstance(example, DemonstrationExample) and not isinstance(example.completion, str):
            # Of a longer conversation the last answer is the one to write again.
            prompt, _ = split_last([*as_messages(prompt, "user"), *example.completion])
        # A reward function may want the answers that are known; a column of the data keeps its name.
        for name in ("completion", "chosen", "rejected"):
            if hasattr(example, name):
                columns.setdefault(name, getattr(example, name))
        unique.setdefault(key_of(prompt), PromptExample(prompt, columns))
    rows = list(unique.values())
    repeated = len(examples) - len(rows)
    note = f"{len(examples)} {source} read as {len(rows)} prompts" + (f", {repeated} repeated" if repeated else "")
    return rows, note
