"""`prefopt train`."""

from pathlib import Path
from typing import Any

from prefopt.config import RunConfig, assign, assign_flag, make_trainer, read_yaml
from prefopt.console import say
from prefopt.errors import UsageError


def run_training(
    given: dict[str, Any], places: dict[str, Any], config_file: str | None, assignments: list[str], extra: list[str]
) -> None:
    """Assemble the run from file, flags and assignments (later ones win), train it, and save the result."""
    config = assemble(given, places, config_file, assignments, extra)
    trainer = make_trainer(config)
    trainer.train(resume_from_checkpoint=config.resume)
    if config.data.eval is not None:
        metrics = trainer.evaluate()
        say("evaluation: " + ", ".join(f"{key}={value:.4g}" for key, value in metrics.items()))
    trainer.save_model(config.out)
    say(f"saved to {config.out}")


def assemble(
    given: dict[str, Any], places: dict[str, Any], config_file: str | None, assignments: list[str], extra: list[str]
) -> RunConfig:
    """The validated config of a run.

    Raises:
        UsageError: an unknown flag or key, a flag without its value, or something that is missing.
    """
    values = read_yaml(config_file) if config_file else {}
    values |= {key: value for key, value in given.items() if value is not None}
    if isinstance(values.get("data"), str):
        values["data"] = {"train": values["data"]}
    values.setdefault("data", {})
    values["data"] |= {key: value for key, value in places.items() if value is not None}
    if "algorithm" not in values:
        raise UsageError("which algorithm? Write `prefopt train NAME`; `prefopt algorithms` lists all.")
    for flag, text in _pairs(extra):
        assign_flag(values, flag, text, values["algorithm"])
    for assignment in assignments:
        assign(values, assignment)
    out = values.get("out")
    if out is not None and Path(out).is_file():
        raise UsageError(f"--out {out} is a file; name a folder.")
    return RunConfig.build(values)


def _pairs(extra: list[str]) -> list[tuple[str, str]]:
    """Free flags with their values, from ``--flag value`` and ``--flag=value``."""
    pairs, rest = [], list(extra)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise UsageError(f"unexpected argument {flag!r}.")
        flag, sign, value = flag.partition("=")
        if not sign:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"{flag} needs a value.")
            value = rest.pop(0)
        pairs.append((flag, value))
    return pairs
