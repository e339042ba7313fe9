"""`prefopt plan`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefopt.cli.options import Said
from prefopt.cli.train import assemble
from prefopt.core.console import results
from prefopt.core.errors import PrefoptError, UsageError
from prefopt.memory import Plan, Run, plan_run
from prefopt.memory.text import cards, flags, printed, text_of, total
from prefopt.models.origin import Origin
from prefopt.pipeline.stages import Pipeline, Stage, about, read_pipeline
from prefopt.training.run_file import flag_sections, read_yaml

RESULTS = "results-of-stages"
"""Nothing is written, so it does not matter where."""


def run_plan(said: Said) -> None:
    """Print what a run needs and which cards it fits; of a pipeline, each of its stages and which needs most.

    A YAML file may stand where the algorithm does.
    """
    free = said.words
    if free and said.config is None and (Path(free[0]).is_file() or Path(free[0]).suffix in (".yaml", ".yml")):
        said = replace(said, config=free[0], words=free[1:])
    values = read_yaml(said.config) if said.config else {}
    if "stages" not in values:
        _show(plan_run(Run(**assemble(said, defaults={"out": RESULTS}).arguments(), **said.others)), flags)
        return
    words = [f"--{key.split('.')[0].replace('_', '-')}" for key in said.given]
    if words := [*words, *said.words]:
        raise UsageError(f"{said.config} is a pipeline: say --set STAGE.section.key=value in place of {words[0]}.")
    _plan_stages(read_pipeline(values, said.assignments, RESULTS), said.others)


def _plan_stages(pipeline: Pipeline, options: Mapping[str, Any]) -> None:
    made: dict[str, Origin] = {}
    plans: dict[str, Plan] = {}
    for stage in (stage for stage in pipeline.stages if not stage.evaluates):
        print(f"stage {stage.name}", flush=True)
        try:
            plans[stage.name] = plan_run(Run(**stage.config(pipeline.out).arguments(), made=made, **options))
        except PrefoptError as error:
            raise about(stage.name, error) from error
        folder = str(stage.folder(pipeline.out))
        made[folder] = plans[stage.name].run.result(folder)
        _show(plans[stage.name], _assignments(stage))
    if evaluations := ", ".join(stage.name for stage in pipeline.stages if stage.evaluates):
        print(f"not planned, since nothing is trained there: {evaluations}")
    if plans:
        largest = max(plans, key=lambda name: plans[name].total)
        print(f"stage {largest} needs most: {total(plans[largest])}")


def _show(plan: Plan, write: Callable[[Mapping[str, Any]], str]) -> None:
    results().print(printed(plan))
    if plan.run.device == "cuda":
        for line in cards(plan, write):
            print(line, flush=True)


def _assignments(stage: Stage) -> Callable[[Mapping[str, Any]], str]:
    """How one writes changes for a stage on the command line of `prefopt run`."""
    sections = flag_sections(stage.values["algorithm"])
    places = {name: f"{section}." for section, known in sections.items() for name in known}

    def write(changes: Mapping[str, Any]) -> str:
        return " ".join(
            f"--set {stage.name}.{places.get(name, '')}{name}={text_of(value)}" for name, value in changes.items()
        )

    return write
