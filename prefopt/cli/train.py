"""`prefopt train`."""

from pathlib import Path
from typing import Any

from prefopt.core.errors import UsageError
from prefopt.training.run import train
from prefopt.training.spec import RunConfig, assign, assign_flag, check_sections, read_yaml


def run_training(
    given: dict[str, Any], places: dict[str, Any], config_file: str | None, assignments: list[str], free: list[str]
) -> None:
    """Assemble the run from file, flags and assignments (later ones win), train it, and save the result."""
    config = assemble(given, places, config_file, assignments, free)
    train(config, resume=config.resume)


def assemble(
    given: dict[str, Any], places: dict[str, Any], config_file: str | None, assignments: list[str], free: list[str]
) -> RunConfig:
    """The validated config of a run. ``free`` holds the algorithm, if it is given, and flags of its own.

    Raises:
        UsageError: an unknown flag or key, a flag without its value, or something that is missing.
    """
    values = read_yaml(config_file) if config_file else {}
    check_sections(RunConfig, values, config_file or "")
    values |= {key: value for key, value in given.items() if value is not None}
    if isinstance(values.get("data"), str):
        values["data"] = {"train": values["data"]}
    values["data"] = (values.get("data") or {}) | {key: value for key, value in places.items() if value is not None}
    words, flags = split_free(free)
    if len(words) > 1:
        raise UsageError(f"unexpected argument {words[1]!r}: `prefopt train` takes one algorithm.")
    if words:
        values["algorithm"] = words[0]
    if "algorithm" not in values:
        raise UsageError("which algorithm? Write `prefopt train NAME`; `prefopt algorithms` lists all.")
    for flag, text in flags:
        assign_flag(values, flag, text, values["algorithm"])
    for assignment in assignments:
        assign(values, assignment)
    out = values.get("out")
    if out is not None and Path(out).is_file():
        raise UsageError(f"--out {out} is a file; name a folder.")
    return RunConfig.build(values)


def split_free(free: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Words, and flags with their values (``--flag value`` or ``--flag=value``)."""
    words: list[str] = []
    flags: list[tuple[str, str]] = []
    rest = list(free)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            words.append(flag)
            continue
        flag, sign, value = flag.partition("=")
        if not sign:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"{flag} needs a value.")
            value = rest.pop(0)
        flags.append((flag, value))
    return words, flags
