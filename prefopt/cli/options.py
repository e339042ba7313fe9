"""The flags of a command, made from the arguments that a class declares."""

import inspect
from collections.abc import Callable
from dataclasses import Field, dataclass, field
from typing import Annotated, Any

import typer

from prefopt.core.arguments import file_keys


@dataclass(frozen=True)
class Said:
    """What a command line says about a run.

    Attributes:
        words: Words and flags that are no options of the command: the algorithm, and the settings of sections.
        given: The values of options, by the keys of a run file.
        config: The run file.
        assignments: ``section.key=value``.
        others: The values of arguments that no run file has.
    """

    words: list[str] = field(default_factory=list)
    given: dict[str, Any] = field(default_factory=dict)
    config: str | None = None
    assignments: list[str] = field(default_factory=list)
    others: dict[str, Any] = field(default_factory=dict)


CONFIG = Annotated[str | None, typer.Option("--config", "-c", help="YAML file; flags win over it.")]
SET = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, any key of the YAML.")]


def said_about(
    kind: Any, word: tuple[str, str], *, which: Callable[[str], bool], own: Any = None
) -> Callable[[Callable[[Said], None]], Callable[..., None]]:
    """Decorator: a command gets what the command line says as one `Said`.

    Args:
        kind: The class that declares the arguments.
        word: The name of the positional argument, and its help.
        which: Says of an argument's name if it is an option of this command.
        own: A class whose further arguments are options of this command alone.
    """
    keys = {key: one for key, one in file_keys(kind).items() if which(one.name) and _flags(one)}
    others = {key: one for key, one in (file_keys(own) if own else {}).items() if key not in file_keys(kind)}
    name, help = word
    parameters = [
        _parameter("context", typer.Context, inspect.Parameter.empty),
        _parameter(name, Annotated[str | None, typer.Argument(help=help)]),
        *(_parameter(one.name, _option(one)) for one in (*keys.values(), *others.values())),
        _parameter("config", CONFIG),
        _parameter("set_", SET),
    ]

    def decorate(command: Callable[[Said], None]) -> Callable[..., None]:
        def call(context: typer.Context, **values: Any) -> None:
            # Click takes an unknown flag for the missing word.
            words = [*([values[name]] if values[name] else []), *context.args]
            given = {key: _read(one, values[one.name]) for key, one in keys.items() if values[one.name] is not None}
            rest = {key: values[one.name] for key, one in others.items() if values[one.name] is not None}
            command(Said(words, given, values["config"], values["set_"] or [], rest))

        call.__name__, call.__doc__, call.__module__ = command.__name__, command.__doc__, command.__module__
        call.__signature__ = inspect.Signature(parameters)
        call.__annotations__ = {one.name: one.annotation for one in parameters}
        return call

    return decorate


def _parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _flags(one: Field) -> tuple[str, ...]:
    """The flags of an argument; a section, and an argument that is the word of a command, has none."""
    if one.metadata["flags"] is not None:
        return one.metadata["flags"]
    flag = f"--{one.name.replace('_', '-')}"
    if one.metadata["file"] is bool and one.default is True:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    return () if one.metadata["file"] is dict else (flag,)


def _option(one: Field) -> Any:
    kind, help = one.metadata["file"], one.metadata["help"]
    if kind not in (bool, str, int):  # a reward, of which there may be several
        kind, help = list[str], f"{help} May be repeated."
    if isinstance(one.default, str):
        help = f"{help} By default {one.default}."
    return Annotated[kind | None, typer.Option(*_flags(one), help=help)]


def _read(one: Field, value: Any) -> Any:
    if isinstance(value, list):
        from prefopt.training.run_file import parse_rewards

        return parse_rewards(value)
    return value
