"""`prefopt plan`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefopt.algorithms import get_algorithm
from prefopt.cli.train import assemble
from prefopt.core.console import results
from prefopt.core.errors import PrefoptError, UsageError
from prefopt.memory import Plan, Run, plan_run
from prefopt.memory.origin import Origin
from prefopt.memory.text import cards, flags, printed, text_of, total
from prefopt.pipeline.stages import Pipeline, Stage, about, read_pipeline
from prefopt.training.spec import RunConfig, flag_sections, read_yaml

RESULTS = "results-of-stages"
"""Nothing is written, so it does not matter where."""


def run_plan(
    given: dict[str, Any],
    places: dict[str, Any],
    config_file: str | None,
    assignments: list[str],
    free: list[str],
    *,
    device: str,
    prompt_length: int | None,
) -> None:
    """Print what a run needs and which cards it fits; of a pipeline, each of its stages and which needs most.

    The arguments are those of `prefopt train`; ``out`` may be missing, and a config file may stand where the algorithm
    does.
    """
    if free and config_file is None and (Path(free[0]).is_file() or Path(free[0]).suffix in (".yaml", ".yml")):
        config_file, *free = free
    values = read_yaml(config_file) if config_file else {}
    options = {"device": device, "prompt_length": prompt_length}
    if "stages" not in values:
        config = assemble(given, places, config_file, [*assignments, f"out={RESULTS}"], free)
        _show(plan_run(run_of(config, **options)), flags)
        return
    words = [f"--{name.replace('_', '-')}" for name, value in {**given, "data": places["train"]}.items() if value]
    if words := [*words, *free]:
        raise UsageError(f"{config_file} is a pipeline: say --set STAGE.section.key=value in place of {words[0]}.")
    _plan_stages(read_pipeline(values, assignments, RESULTS), options)


def _plan_stages(pipeline: Pipeline, options: Mapping[str, Any]) -> None:
    made: dict[str, Origin] = {}
    plans: dict[str, Plan] = {}
    for stage in (stage for stage in pipeline.stages if not stage.evaluates):
        print(f"stage {stage.name}", flush=True)
        try:
            plans[stage.name] = plan_run(run_of(stage.config(pipeline.out), made=made, **options))
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


def run_of(config: RunConfig, **further: Any) -> Run:
    """What is planned for a config."""
    return Run(
        model=config.model,
        algorithm=get_algorithm(config.algorithm, **config.hyperparameters),
        train_dataset=config.data.train,
        adapter=config.adapter,
        lora=config.lora,
        reference=config.reference,
        reference_cache=config.reference_cache,
        reward=config.reward,
        data=config.data.settings,
        generation=config.generation or None,
        args=config.args,
        share_prompts=config.share_prompts,
        trust_remote_code=config.trust_remote_code,
        **further,
    )
