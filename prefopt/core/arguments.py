"""Arguments that are declared once, and said in Python, in a YAML file and as flags.

A dataclass holds the arguments: one field each, with `argument` as its metadata. From the class come the signature and
the description of a function (`takes`), the keys of a file (`read_arguments`), their JSON schema (`schema`), and, in
`prefopt.cli.options`, the flags of a command.
"""

import copy
import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar, get_args, get_origin

from prefopt.core.errors import UsageError
from prefopt.core.settings import refuse_unknown, with_arguments, wrong_type

P = ParamSpec("P")
A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")


def argument(
    help: str,
    *,
    python: str = "",
    file: Any = None,
    key: str = "",
    flags: tuple[str, ...] | None = None,
    settings: str = "",
    shared: bool = False,
    model: bool = False,
) -> Mapping[str, Any]:
    """The metadata of a field that is an argument.

    Args:
        help: The argument's description, a noun phrase that holds wherever the argument is said.
        python: What the description adds in Python, such as further forms of the value.
        file: The type of the value in a file; None for an argument that is said in Python alone.
        key: The key in a file, with the section before a dot; by default the field's name.
        flags: The flags on the command line; by default the field's name after ``--``. Sections have none.
        settings: Where the settings of a section are declared, as ``module:Class``.
        shared: In a pipeline, stages may share the value.
        model: The value is the name of a model, which an earlier stage of a pipeline may make.
    """
    said = {"help": help, "python": python, "file": file, "key": key, "flags": flags, "settings": settings}
    return said | {"shared": shared, "model": model}


# ---- Python -------------------------------------------------------------------------------------------------------


def takes(kind: Callable[P, A]) -> Callable[[Callable[[A], R]], Callable[P, R]]:
    """Decorator: the function takes the arguments that ``kind`` declares, and gets them as one object."""

    def decorate(function: Callable[[A], R]) -> Callable[P, R]:
        return _described(lambda *args, **kwargs: function(_made(kind, function, args, kwargs)), kind, function)

    return decorate


def method_takes(kind: Callable[P, A]) -> Callable[[Callable[[T, A], R]], Callable[Concatenate[T, P], R]]:
    """Decorator: the same for a method."""

    def decorate(method: Callable[[T, A], R]) -> Callable[Concatenate[T, P], R]:
        owner = method.__qualname__.removesuffix(".__init__")

        def call(self: T, *args: Any, **kwargs: Any) -> R:
            return method(self, _made(kind, method, args, kwargs, owner))

        itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return _described(call, kind, method, itself)

    return decorate


def _made(kind: Any, function: Callable, args: tuple, kwargs: dict[str, Any], name: str = "") -> Any:
    signature = inspect.signature(kind)
    refuse_unknown(name or function.__name__, kwargs, signature.parameters, noun="argument")
    signature.bind(*args, **kwargs)
    return kind(*args, **kwargs)


def _described(call: Callable, kind: Any, function: Callable, *first: inspect.Parameter) -> Callable:
    """The function that users see: with the signature of ``kind``, and with the arguments in its description."""
    functools.update_wrapper(call, function)
    del call.__wrapped__  # Its signature is another one.
    returns = inspect.signature(function).return_annotation
    parameters = inspect.signature(kind).parameters.values()
    call.__signature__ = inspect.Signature([*first, *parameters], return_annotation=returns)
    call.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": returns}
    said = {one.name: one.metadata for one in dataclasses.fields(kind)}
    texts = {name: f"{one['help']} {one['python']}".strip() for name, one in said.items()}
    call.__doc__ = with_arguments(function.__doc__ or "", texts)
    return call


# ---- files --------------------------------------------------------------------------------------------------------


def file_keys(kind: Any) -> dict[str, dataclasses.Field]:
    """The arguments that a file may hold, by their keys; one inside a section is ``section.key``."""
    fields = [field for field in dataclasses.fields(kind) if field.metadata["file"] is not None]
    return {field.metadata["key"] or field.name: field for field in fields}


def sections(kind: Any) -> list[str]:
    """The keys on the first level of a file."""
    return list(dict.fromkeys(key.split(".")[0] for key in file_keys(kind)))


def read_arguments(
    kind: type[A], values: Mapping[str, Any], where: str = "config", *, hint: Callable[[str], str] | None = None
) -> A:
    """The arguments that the mapping of a file holds; null stands for the default.

    Args:
        kind: The class of the arguments.
        values: The mapping.
        where: The name of the file in messages.
        hint: See `refuse_unknown`.

    Raises:
        UsageError: An unknown key, a value of a wrong type, or a required argument that is missing.
    """
    refuse_unknown(where, values, sections(kind), hint=hint)
    keys, rest, given = file_keys(kind), copy.copy(dict(values)), {}
    # What a section holds besides its settings is taken out of it first.
    for key, field in keys.items():
        section, dot, name = key.partition(".")
        if dot and rest.get(section) is not None:
            _refuse_type(where, section, Mapping, rest[section])
            rest[section] = dict(rest[section])
            given[field.name] = rest[section].pop(name, None)
    for key, field in keys.items():
        if "." not in key:
            given[field.name] = rest.get(key)
    given = {name: value for name, value in given.items() if value is not None}
    for key, field in keys.items():
        if field.name in given:
            _refuse_type(where, key, field.metadata["file"], given[field.name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UsageError(f"{key} is missing: give --{key}, or {key}: in the config file.")
    return kind(**given)


def _refuse_type(where: str, key: str, kind: Any, value: Any) -> None:
    if wrong := wrong_type(kind, value):
        raise UsageError(f"{where}: {key}={value!r} {wrong}")


def settings_of(field: dataclasses.Field) -> Any:
    """The class that declares the settings of a section; None where they are not declared in one place."""
    module, _, name = field.metadata["settings"].partition(":")
    return getattr(importlib.import_module(module), name) if module else None


# ---- the schema of a file -----------------------------------------------------------------------------------------

_JSON = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", list: "array"}
_JSON |= {Mapping: "object", type(None): "null"}
_BOUNDS = {"above": "exclusiveMinimum", "below": "exclusiveMaximum", "at_least": "minimum", "at_most": "maximum"}


def schema(kind: Any) -> dict[str, Any]:
    """The JSON schema of the files that `read_arguments` takes."""
    whole: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False, "required": []}
    # Sections first: what else they hold is added to them.
    for key, field in sorted(file_keys(kind).items(), key=lambda one: "." in one[0]):
        section, dot, name = key.partition(".")
        made = _schema_of(field.metadata["file"], field)
        declared = settings_of(field)
        if declared is not None:
            own = [one for one in dataclasses.fields(declared) if one.init]
            made["properties"] = {one.name: _schema_of(one.type, one) for one in own}
            made["additionalProperties"] = False
        if dot:
            whole["properties"][section]["properties"][name] = made
        else:
            whole["properties"][key] = made
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                whole["required"].append(key)
    return whole


def _schema_of(kind: Any, field: dataclasses.Field) -> dict[str, Any]:
    parts = get_args(kind) if get_origin(kind) is not Mapping else ()
    names = [_JSON.get(get_origin(part) or part) for part in parts or (kind,)]
    made: dict[str, Any] = {} if None in names else {"type": names if len(names) > 1 else names[0]}
    made["description"] = field.metadata.get("help", "")
    if isinstance(field.default, (bool, int, float, str)):
        made["default"] = field.default
    made |= {_BOUNDS[key]: value for key, value in field.metadata.items() if key in _BOUNDS and value is not None}
    if field.metadata.get("choices"):
        made["enum"] = list(field.metadata["choices"])
    return made
