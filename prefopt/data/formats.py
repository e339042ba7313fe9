"""From rows of any public layout to examples: which layout is this, and what does each row say?"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefopt.core.errors import DataError
from prefopt.core.labels import LABELS, labels_of
from prefopt.data.convert import SOURCES
from prefopt.data.examples import Example
from prefopt.data.exported import EXPORTED
from prefopt.data.judged import JUDGED
from prefopt.data.known import FORMATS
from prefopt.data.layouts import Format, read_label, read_number
from prefopt.data.messages import is_messages, is_turn
from prefopt.data.reasons import Cause, Reason, Skipped, SkipRow
from prefopt.data.settings import DataSettings
from prefopt.data.values import cut_character, parse_text, read_structure


@dataclass(frozen=True)
class Reading:
    """What came out of a list of rows.

    Attributes:
        format: the layout that they were read as.
        examples: one per row that could be used.
        dropped: the numbers of those that could not, with the cause, in order.
    """

    format: Format
    examples: list[Example]
    dropped: list[Skipped]


def to_examples(
    rows: Sequence[Mapping[str, Any]], settings: DataSettings | None = None, kind: str | None = None
) -> Reading:
    """Read rows as examples; a bad row is dropped and counted.

    Args:
        rows: at least one row of named columns.
        settings: ``format`` and ``columns`` are used.
        kind: the kind that is wanted in the end. The layout does not depend on it, but for ratings of single
            completions, which are demonstrations to everyone else; for prompts, every other column stays among
            ``columns``.

    Raises:
        DataError: the columns fit no layout, or not the one that was asked for, or one that cannot become ``kind``.
    """
    settings = DataSettings.of(settings)
    rows = _rename(rows, settings.columns)
    first = _first_values(rows)
    spelled = _spelled(first)
    first = {**first, **spelled}
    chosen = _demand(FORMATS[settings.format], first) if settings.format else _detect(first, kind)
    if kind is not None and chosen.kind not in SOURCES[kind]:
        raise DataError(_wrong_kind(first, chosen, kind))
    examples: list[Example] = []
    dropped: list[Skipped] = []
    malformed: Cause | None = None
    if "desirable" in {label.name for label in labels_of(chosen.kind)}:
        _check_marks(rows, chosen)
    for number, row in enumerate(rows):
        try:
            _refuse_cut(row)
            row = {**row, **{name: read_structure(row.get(name), name) for name in spelled}}
            examples.append(replace(_build(chosen, row, kind), row=number))
        except SkipRow as skip:
            dropped.append((number, skip.cause))
        except (TypeError, KeyError, AttributeError, ValueError, IndexError) as error:
            # All malformed rows are counted together, and the first one stands for them.
            what = f"{type(error).__name__} {str(error).splitlines()[0]:.80}"
            malformed = malformed or Cause.of(Reason.MALFORMED, row=number, error=what)
            dropped.append((number, malformed))
    return Reading(chosen, examples, dropped)


def _refuse_cut(row: Mapping[str, Any]) -> None:
    for name, value in row.items():
        if cut_character(value):
            raise SkipRow(Reason.CUT_CHARACTER, column=name)


def _check_marks(rows: Sequence[Mapping[str, Any]], chosen: Format) -> None:
    """Refuse a label column with 0 and −1, of which either may be the undesirable one."""
    for name in LABELS["desirable"].columns[chosen.kind]:
        numbers = {read_number(row.get(name)) for row in rows}
        if {0.0, -1.0} <= numbers:
            raise DataError(
                f"the column {name!r} holds 0 and -1: which of them is undesirable, and which says nothing, is not "
                "known. Leave out the rows that say nothing, and write true and false."
            )


def _build(chosen: Format, row: Mapping[str, Any], kind: str | None) -> Example:
    example = chosen.build(row)
    read = {
        label.name: read_label(row, label, chosen.kind)
        for label in chosen.read_labels
        if not hasattr(example, label.name)
    }
    labels = {**{name: value for name, value in read.items() if value is not None}, **example.labels}
    # A reward function may want any column, such as the answer to a question, under its own name.
    gone = {"prompt"} if kind == "prompts" else chosen.consumed
    rest = {name: value for name, value in row.items() if name not in gone}
    return replace(example, labels=labels, columns={**rest, **example.columns})


def _rename(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Sequence[Mapping[str, Any]]:
    if not columns:
        return rows
    found = {name for row in rows for name in row}
    for old, new in columns.items():
        if old not in found:
            turn = f" Turn it round: {{{new!r}: {old!r}}}." if new in found else ""
            raise DataError(f"data.columns renames {old!r}, which is not a column ({_list(found)}).{turn}")
    return [
        {columns.get(name, name): value for name, value in row.items() if not _replaced(name, columns)} for row in rows
    ]


def _replaced(name: str, columns: Mapping[str, str]) -> bool:
    """Whether a column gives way to another that is renamed to its name."""
    return name not in columns and name in columns.values()


def _first_values(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first value of each column that is neither null nor empty; columns without one count as absent."""
    first: dict[str, Any] = {}
    blank: dict[str, Any] = {}
    for row in rows:
        for name, value in row.items():
            if name in first or value is None:
                continue
            if value == "" or value == []:
                blank.setdefault(name, value)
            else:
                first[name] = value
    return {**blank, **first}


def _spelled(first: Mapping[str, Any]) -> dict[str, Any]:
    """Of columns with lists or mappings that are written as text (by a table in CSV, say) the value of each.

    A text stays text where a layout reads text there, unless it spells messages. Messages that are spelled in a way
    which cannot be read stay in the result as text, so that no row is trained on them.
    """
    found = {}
    for name, value in first.items():
        if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
            continue
        parsed = parse_text(value)
        tests = [test for each in FORMATS.values() for need, test in each.needs.items() if name in need.split("|")]
        if parsed is None:
            if tests and _MESSAGES_AS_TEXT.match(value) and value.rstrip().endswith("]"):
                found[name] = value
        elif any(test(parsed) for test in tests) and (_holds_turns(parsed) or not any(test(value) for test in tests)):
            found[name] = parsed
    return found


# How numpy prints a list of messages, for one: without commas between them.
_MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](role|from|content|value)['"]\s*:""")


def _holds_turns(value: Any) -> bool:
    """Whether a value that was written as text is messages, or a mapping with them."""
    if isinstance(value, Mapping) and "messages" in value:
        value = value["messages"]
    turns = [value] if is_turn(value) else value if is_messages(value) and isinstance(value, list) else []
    # Any list of mappings with a field "from" would do where messages are expected; here it could be somebody's words.
    return bool(turns) and all("role" in turn or "value" in turn for turn in turns)


def _unmet(each: Format, first: Mapping[str, Any]) -> list[str]:
    """The needs of a layout that the columns do not meet."""
    return [
        need
        for need, test in each.needs.items()
        if not any(name in first and test(first[name]) for name in need.split("|"))
    ]


def _detect(first: Mapping[str, Any], kind: str | None) -> Format:
    for each in FORMATS.values():
        if not _unmet(each, first) and (not each.wanted or each.kind == kind):
            if not each.auto:
                raise DataError(_choose_axis(first))
            return each
    raise DataError(_no_format(first, _closest(first, kind)))


def _demand(wanted: Format, first: Mapping[str, Any]) -> Format:
    if _unmet(wanted, first):
        raise DataError(_no_format(first, wanted))
    return wanted


def _choose_axis(first: Mapping[str, Any]) -> str:
    fits = [each.name for each in FORMATS.values() if not each.auto and not _unmet(each, first)]
    return f"these columns can be read in more than one way; set data.format to {' or '.join(map(repr, fits))}."


def _closest(first: Mapping[str, Any], kind: str | None) -> Format:
    """The layout (of this kind) with the fewest unmet needs, and among those the one with the most met."""

    def distance(each: Format) -> tuple[int, int]:
        unmet = len(_unmet(each, first))
        met = len(each.needs) - unmet
        # One common column does not make anyone mean a rare layout.
        return unmet + (2 if each in (*JUDGED, *EXPORTED) and met < 2 else 0), -met

    return min((each for each in FORMATS.values() if each.auto and kind in (None, each.kind)), key=distance)


def _wrong_kind(first: Mapping[str, Any], found: Format, kind: str) -> str:
    closest = _closest(first, kind)
    return (
        f"the data holds {found.kind} (format {found.name!r}, columns {_list(first)}), and {kind} are needed. The "
        f"closest format with {kind} is {closest.name!r}, {_fault(first, closest)}. {_remedy(first, closest)}"
    )


def _no_format(first: Mapping[str, Any], closest: Format) -> str:
    """One line: the columns found, the closest layout, what it lacks, and the remedy."""
    return (
        f"cannot read the columns {_list(first)} as preference data. The closest format is {closest.name!r}, "
        f"{_fault(first, closest)}. {_remedy(first, closest)}"
    )


def _fault(first: Mapping[str, Any], closest: Format) -> str:
    absent, wrong = [], []
    for need in _unmet(closest, first):
        present = [name for name in need.split("|") if name in first]
        if present:
            wrong.append(f"in which {present[0]!r} cannot be {_shape(first[present[0]])}")
        else:
            absent.append(" or ".join(map(repr, need.split("|"))))
    return ", and ".join([*([f"which lacks {', '.join(absent)}"] if absent else []), *wrong])


def _remedy(first: Mapping[str, Any], closest: Format) -> str:
    missing = next((need.split("|")[0] for need in closest.needs if not set(need.split("|")) & set(first)), None)
    if missing is None:
        return "Correct the column, or name the layout in data.format."
    spare = [name for name in first if name not in closest.consumed]
    near = difflib.get_close_matches(missing, spare, n=1, cutoff=0.5)
    return f"Rename with data.columns={{{near[0] if near else 'its name here'!r}: {missing!r}}}, or set data.format."


def _shape(value: Any) -> str:
    if is_messages(value) or is_turn(value):
        return "messages"
    if isinstance(value, list):
        return f"a list of {type(value[0]).__name__}" if value else "an empty list"
    return f"a {type(value).__name__} ({value!r:.30})"


def _list(names: Any) -> str:
    return ", ".join(sorted(map(str, names)))
