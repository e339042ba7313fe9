"""Single values as they come out of files, tables and data frames, made plain: what is absent, and what is text.

Nothing here knows a layout.
"""

import ast
import json
from collections.abc import Mapping
from typing import Any

from prefopt.data.reasons import Reason, SkipRow

_TOOLS = ("tools", "tool_calls", "functions", "function_call")
_MISSING = ("NAType", "NaTType")
"""The types with which pandas marks what is missing; it need not be installed."""


def plain(value: Any) -> Any:
    """A value of a table as Python has it: lists for arrays, numbers for scalars of numpy, None for NaN."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return None if value != value else float(value)
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if type(value).__name__ in _MISSING:
        return None
    for convert in ("tolist", "to_list"):  # numpy and pandas; polars
        if hasattr(value, convert):
            return plain(getattr(value, convert)())
    return value


def without_tool_nulls(value: Any) -> Any:
    """A value without the null fields inside tool schemas and tool calls.

    A column of an Arrow table has the same fields in every row, and null where a row did not have one. There a call
    ``{"city": "Rome"}`` beside a call ``{"zone": "CET"}`` becomes ``{"city": "Rome", "zone": null}``, which a chat
    template would write.
    """
    if isinstance(value, Mapping):
        return {key: _without_nulls(one) if key in _TOOLS else without_tool_nulls(one) for key, one in value.items()}
    return [without_tool_nulls(one) for one in value] if isinstance(value, list) else value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def parse_text(text: str) -> Any:
    """The list or mapping that a text spells, as JSON or as Python prints it; None where it spells neither."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, (list, dict)):
            return value
    return None


def read_structure(value: Any, column: str) -> Any:
    """A value, which may be a text that spells it, of a column that holds lists or mappings; None for a blank one.

    Raises:
        SkipRow: A text that spells neither.
    """
    if isinstance(value, float) and value != value:
        return None
    if not isinstance(value, str):
        return value
    if not value.strip() or value.strip().lower() in ("null", "none", "nan"):
        return None
    parsed = parse_text(value)
    if parsed is None:
        raise SkipRow(Reason.NOT_JSON, column=column)
    return parsed


def read_tools(value: Any) -> list | None:
    """The tool schemas of a column, which may hold them as text, one by one or all together; None for no tools.

    Raises:
        SkipRow: A text that is not JSON.
    """
    value = read_structure(value, "tools")
    if isinstance(value, Mapping):
        value = [value]
    return [read_structure(one, "tools") for one in value] if isinstance(value, list) and value else value or None


def cut_character(value: Any) -> bool:
    """Whether text somewhere in a value holds half of a surrogate pair, such as an emoji that was cut in two.

    JSON can write one (``"\\ud83d"``), but it is no character: it can be neither encoded nor tokenized.
    """
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= one <= "\udfff" for one in value)
    if isinstance(value, Mapping):
        return any(cut_character(key) or cut_character(one) for key, one in value.items())
    return isinstance(value, (list, tuple)) and any(map(cut_character, value))
