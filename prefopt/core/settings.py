"""Declared settings: their defaults, meanings and bounds, one way to read them, and one message for each mistake.

Everything a user can set is a field of a dataclass, declared with `parameter`: hyperparameters of objectives, data and
generation settings, the critic, built-in rewards, judges. `read_settings` makes such a dataclass from a mapping.
"""

import dataclasses
import inspect
import math
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING
from typing import Any, ClassVar, Self, TypeVar, Union, get_args, get_origin

from prefopt.core.errors import UsageError, did_you_mean
from prefopt.core.recipe import Range

S = TypeVar("S")

WIDTH = 110
MANY = 30
"""More settings than this are not listed in a message."""


def parameter(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    below: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] = (),
    check: Callable[[Any], str] | None = None,
    tune: Range | None = None,
) -> Any:
    """Declare a setting, such as a hyperparameter of an objective.

    Args:
        default: The value of a setting that is not given; ``dataclasses.MISSING`` for one that must be.
        help: The meaning, as a noun phrase.
        above, below, at_least, at_most: Bounds, open or closed.
        choices: The allowed values.
        check: From a value to what is wrong with it, as the end of a sentence; empty if nothing is.
        tune: The range of values to tune in.
    """
    bounds = {"above": above, "below": below, "at_least": at_least, "at_most": at_most, "choices": choices}
    metadata = {"help": help, **bounds, "check": check, "tune": tune}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Settings:
    """Base of a frozen dataclass whose fields are declared with `parameter`; they are checked when it is made.

    Their descriptions become a section of the docstring.

    Attributes:
        name: The name of these settings in messages.
    """

    name: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = {name: field for name, field in vars(cls).items() if isinstance(field, dataclasses.Field) and field.init}
        cls.__doc__ = with_arguments(cls.__doc__ or "", {name: one.metadata["help"] for name, one in own.items()})

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def of(cls, given: Self | Mapping[str, Any] | None) -> Self:
        """See `read_settings`."""
        return read_settings(cls, given)


def read_settings(
    kind: type[S],
    given: S | Mapping[str, Any] | None,
    where: str = "",
    *,
    noun: str = "setting",
    besides: Iterable[str] = (),
) -> S:
    """Settings from a mapping; an object of the class is taken as it is, and None stands for the defaults.

    Args:
        kind: A dataclass whose fields are declared with `parameter`.
        given: The settings.
        where: The name of the settings in messages; by default the ``name`` of the class.
        noun: The word for one of them in messages.
        besides: Keys that are read elsewhere, for the list of what there is.

    Raises:
        UsageError: A key that does not exist, one that is missing, or a value that is not allowed.
    """
    where = where or getattr(kind, "name", "") or kind.__name__
    if isinstance(given, kind):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise UsageError(f"{where}={given!r} must be a mapping of settings or a {kind.__name__}.")
    declared = {field.name: field for field in dataclasses.fields(kind) if field.init}
    refuse_unknown(where, given or {}, [*declared, *besides], noun=noun)
    values = {}
    for name, value in (given or {}).items():
        # Before the object is made, whose constructor may have types of its own to insist on.
        check_parameter(where, declared[name], value)
        # 1e3 is a float in YAML and in Python.
        values[name] = int(value) if declared[name].type is int and isinstance(value, float) else value
    for name, field in declared.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(f"{where}: {name} is missing: {field.metadata['help']}.")
    return kind(**values)


def check_settings(settings: Any, where: str = "") -> None:
    """Check every field of an object whose fields are declared with `parameter`.

    Raises:
        UsageError: A value that is not allowed.
    """
    for field in dataclasses.fields(settings):
        if field.init:
            check_parameter(where or settings.name or type(settings).__name__, field, getattr(settings, field.name))


def refuse_unknown(
    where: str,
    given: Iterable[str],
    known: Iterable[str],
    *,
    noun: str = "setting",
    hint: Callable[[str], str] | None = None,
    more: str = "",
    see: str = "",
) -> None:
    """Refuse the first of the given keys that is not known.

    Args:
        where: The name of the settings.
        given: The keys.
        known: The keys that there are.
        noun: The word for one of them.
        hint: From an unknown key to a sentence about it, for one that is like none of the known.
        more: A further remark, after the list.
        see: The class that has them, where they are too many to list.

    Raises:
        UsageError: With the nearest known key, and the list of all.
    """
    names = list(known)
    for key in given:
        if key not in names:
            near = did_you_mean(str(key), names) or (hint(str(key)) if hint else "")
            has = f"It has {', '.join(names) or 'none'}" if len(names) <= MANY else f"See {see}"
            raise UsageError(f"{where} has no {noun} {key!r}.{near} {has}{more}.")


def with_arguments(doc: str, described: Mapping[str, str]) -> str:
    """A docstring with a section about arguments, before the one about errors.

    Args:
        doc: The docstring without it.
        described: The description of each argument.
    """
    if not described:
        return doc
    before, mark, after = inspect.cleandoc(doc).partition("\n\nRaises:")
    lines = [
        textwrap.fill(f"{name}: {text}", WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8)
        for name, text in described.items()
    ]
    return "\n".join([before, "", "Args:", *lines]) + mark + after


def check_parameter(owner: str, field: dataclasses.Field, value: Any) -> None:
    """Check one value against the declaration of its field.

    Raises:
        UsageError: With the owner, the parameter, the value it had and what is allowed.
    """
    wrong = _wrong(field, value)
    if wrong:
        raise UsageError(f"{owner}: {field.name}={value!r} {wrong}")


def wrong_type(kind: Any, value: Any) -> str:
    """What is wrong with a value that should be of a type, as the end of a sentence; empty if nothing is."""
    kinds = _alternatives(kind)
    if any(_is_a(one, value) for one in kinds):
        return ""
    words = [_WORDS[one] for one in kinds if one is not types.NoneType]
    return f"must be {' or '.join(words)}." if words else ""


_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    Mapping: "a mapping",
    list: "a list",
}
_NAMED = {"bool": bool, "int": int, "float": float, "str": str}
"""Types as they are written in a file that postpones the evaluation of annotations."""
_BOUNDS: tuple[tuple[str, Callable[[Any, Any], bool], str], ...] = (
    ("above", lambda v, b: v > b, ">"),
    ("below", lambda v, b: v < b, "<"),
    ("at_least", lambda v, b: v >= b, ">="),
    ("at_most", lambda v, b: v <= b, "<="),
)


def _wrong(field: dataclasses.Field, value: Any) -> str:
    meta = field.metadata
    choices = meta.get("choices")
    if choices:
        listed = ", ".join(map(repr, choices))
        return "" if value in choices else f"is not one of {listed}.{did_you_mean(str(value), choices)}"
    check = meta.get("check")
    if check is not None:
        return check(value)
    wrong = wrong_type(field.type, value)
    if wrong or value is None:
        return wrong
    for key, holds, sign in _BOUNDS:
        bound = meta.get(key)
        if bound is not None and not holds(value, bound):
            return f"is out of range: it must be {sign} {bound}."
    return ""


def _alternatives(kind: Any) -> list[Any]:
    """The types that a type allows; empty where it is none that can be checked here."""
    kind = _NAMED.get(kind) if isinstance(kind, str) else kind
    if get_origin(kind) in (Union, types.UnionType):
        parts = [_alternatives(part) for part in get_args(kind)]
        return [] if [] in parts else [one for part in parts for one in part]
    kind = get_origin(kind) or kind
    kind = Mapping if kind is dict else kind
    return [kind] if kind in (*_WORDS, types.NoneType) else []


def _is_a(kind: Any, value: Any) -> bool:
    if kind in (int, float):
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return number and (kind is float or value == int(value))
    return isinstance(value, kind)
