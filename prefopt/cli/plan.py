"""`prefopt plan`."""

from pathlib import Path
from typing import Any

from prefopt.catalogue import get_algorithm
from prefopt.cli.train import assemble
from prefopt.config import RunConfig
from prefopt.planning import Run, plan_run
from prefopt.planning.text import cards, lines


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
    """Print what a run needs and which cards it fits. The arguments are those of `prefopt train`; ``out`` may be
    missing, and a config file may stand where the algorithm does."""
    if free and config_file is None and Path(free[0]).is_file():
        config_file, *free = free
    # Nothing is written, so it does not matter where.
    config = assemble(given, places, config_file, [*assignments, "out=."], free)
    made = plan_run(run_of(config, device=device, prompt_length=prompt_length))
    for line in lines(made):
        print(line, flush=True)
    if device == "cuda":
        for line in cards(made):
            print(line, flush=True)


def run_of(config: RunConfig, **further: Any) -> Run:
    """What is planned for a config."""
    return Run(
        model=config.model,
        algorithm=get_algorithm(config.algorithm, **config.hyperparameters),
        train_dataset=config.data.train,
        adapter=config.adapter,
        lora=config.lora,
        reference=config.reference,
        reward=config.reward,
        data=config.data.settings,
        generation=config.generation or None,
        args=config.args,
        trust_remote_code=config.trust_remote_code,
        **further,
    )
