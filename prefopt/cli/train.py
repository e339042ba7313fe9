"""`prefopt train`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt.cli.options import Said
from prefopt.core.errors import UsageError
from prefopt.training.run import train
from prefopt.training.run_file import (
    FREE,
    assign,
    assign_flag,
    read_run,
    read_yaml,
    refuse_keys,
    section_of,
    split_free,
)
from prefopt.training.spec import RunFile


def run_training(said: Said) -> None:
    """Train the run that the command line describes, and save the result."""
    run = assemble(said)
    train(run, resume=run.resume)


def assemble(
    said: Said, *, word: str = "algorithm", defaults: Mapping[str, Any] | None = None, among: tuple[str, ...] = FREE
) -> RunFile:
    """The run of a command line: its file, then its options, free flags and assignments, of which later ones win.

    Args:
        said: The command line.
        word: The key that the word of the command stands for.
        defaults: Values where neither file nor flags say another.
        among: The sections whose settings are free flags.

    Raises:
        UsageError: An unknown flag or key, a flag without its value, or something that is missing.
    """
    values = read_yaml(said.config) if said.config else {}
    refuse_keys(values, said.config or "")
    if isinstance(values.get("data"), str):
        values["data"] = {"train": values["data"]}
    words, flags = split_free(said.words)
    if len(words) > 1:
        raise UsageError(f"unexpected argument {words[1]!r}: this command takes one {word.split('.')[0]}.")
    given = {**said.given, **({word: words[0]} if words else {})}
    for key, value in given.items():
        section, dot, name = key.rpartition(".")
        (section_of(values, section, "config") if dot else values)[name] = value
    for key, value in (defaults or {}).items():
        values.setdefault(key, value)
    if "algorithm" not in values:
        raise UsageError("which algorithm? Write `prefopt train NAME`; `prefopt algorithms` lists all.")
    for flag, text in flags:
        assign_flag(values, flag, text, values["algorithm"], among)
    for assignment in said.assignments:
        assign(values, assignment)
    out = values.get("out")
    if out is not None and Path(out).is_file():
        raise UsageError(f"--out {out} is a file; name a folder.")
    return read_run(values)
