"""Carrying out a pipeline: what is finished is skipped, what was cut off goes on, nothing is overwritten."""

import gc
import json
import os
from dataclasses import replace
from pathlib import Path

import torch

from prefopt.core.console import say
from prefopt.core.errors import Interrupted, PrefoptError, UsageError, did_you_mean
from prefopt.evaluation.run import evaluate
from prefopt.evaluation.spec import Evaluation
from prefopt.pipeline.check import check_pipeline
from prefopt.pipeline.record import FINISHED, SHOWN, Record, differences, digest, made_from
from prefopt.pipeline.stages import REPLACED, Pipeline, Stage, about
from prefopt.training.manifest import newest_whole
from prefopt.training.run import train
from prefopt.training.spec import RunFile

CHECKPOINTS = "checkpoints"


def run_pipeline(pipeline: Pipeline, *, again: str | None = None, only_check: bool = False) -> None:
    """Validate the whole pipeline, then run the stages that are not finished, in order.

    A stage is recorded in ``pipeline.json`` of the pipeline's folder with its config and digests of what it reads. One
    that was finished from the same is skipped; one that was cut off goes on from its newest checkpoint.

    Args:
        pipeline: from `read_pipeline`.
        again: a stage; it and all after it run anew, and their earlier results are moved to ``replaced/``.
        only_check: validate, say what would run, and stop.

    Raises:
        UsageError, DataError, ModelError: something cannot work; or a finished stage has been made from something else
            than the pipeline says now.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "a pipeline runs on one process: start `prefopt run` without a launcher, or its stages one by one with "
            "`accelerate launch -m prefopt train`."
        )
    names = [stage.name for stage in pipeline.stages]
    if again is not None and again not in names:
        raise UsageError(f"--from {again!r} is no stage.{did_you_mean(again, names)} There are {', '.join(names)}.")
    check_pipeline(pipeline)
    record = Record.read(pipeline.out)
    anew = names[names.index(again) :] if again is not None else []
    for stage in pipeline.stages:
        _is_ours(stage, pipeline.out, record)
        if stage.name not in anew:
            _is_the_same(stage, pipeline.out, record)
    for name in [name for name in record.stages if name not in names]:
        say(f"{pipeline.out / name}, of a stage that the pipeline no longer has, is left as it is.")
    if only_check:
        _say_plan(pipeline, record, anew)
        return
    _set_aside(pipeline.out, anew, record)
    for number, stage in enumerate(pipeline.stages, 1):
        _run(stage, pipeline.out, record, f"[{number}/{len(names)}] {stage.name}")


def _say_plan(pipeline: Pipeline, record: Record, anew: list[str]) -> None:
    for stage in pipeline.stages:
        state = "runs anew" if stage.name in anew else _state(stage, pipeline.out, record)
        say(f"{stage.name} ({stage.what}): {state}")


def _state(stage: Stage, out: Path, record: Record) -> str:
    if stage.name not in record.stages or (digest(stage.folder(out)) is None and newest_checkpoint(stage, out) is None):
        return "to run"
    return "finished" if record.stages[stage.name].status == FINISHED else "cut off; goes on"


def _is_ours(stage: Stage, out: Path, record: Record) -> None:
    """Refuse to touch what the pipeline has not made.

    Raises:
        UsageError: with the remedy.
    """
    folder = stage.folder(out)
    if stage.name not in record.stages and (folder.is_file() or (folder.is_dir() and any(folder.iterdir()))):
        raise UsageError(
            f"stage {stage.name}: {folder} is there and was not made by this pipeline: move it away, rename the stage, "
            "or name another --out."
        )


def _is_the_same(stage: Stage, out: Path, record: Record) -> None:
    """Refuse to overwrite what the pipeline has made from something else.

    Raises:
        UsageError: with the first differences and the remedy.
    """
    if stage.name not in record.stages or not stage.folder(out).exists():
        return
    found = differences(record.stages[stage.name], made_from(stage, out))
    if found:
        more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UsageError(
            f"stage {stage.name}: {stage.folder(out)} was made from something else ({'; '.join(found[:SHOWN])}{more}): "
            f"put that back, run with --from {stage.name} (which moves the results from there on to {out / REPLACED}), "
            "or name another --out."
        )


def _run(stage: Stage, out: Path, record: Record, title: str) -> None:
    """Run a stage unless it is finished, and say so under its title."""
    made, folder = record.stages.get(stage.name), stage.folder(out)
    # The results of earlier stages are all there now.
    _is_the_same(stage, out, record)
    if made is not None and made.status == FINISHED:
        now = digest(folder)
        if now is not None:
            say(
                f"{title}: finished before, skipped{'' if now == made.output else f'; {folder} has been changed since'}"
            )
            return
        say(f"{title}: was finished, but {folder} is gone: it runs again")
    checkpoint = None if made is None or stage.evaluates else newest_checkpoint(stage, out)
    say(f"{title}: {stage.what}{f', goes on from {checkpoint}' if checkpoint else ''}")
    now = made_from(stage, out)
    record.stages[stage.name] = now
    record.write()
    try:
        _carry_out(stage.config(out), checkpoint)
    except (KeyboardInterrupt, Interrupted):
        say(f"stopped in stage {stage.name}: the same command goes on from there.")
        raise
    except PrefoptError as error:
        raise about(stage.name, error) from error
    finally:
        _free_memory()
    record.stages[stage.name] = replace(now, status=FINISHED, output=digest(folder))
    record.write()
    say(f"{title}: finished, in {folder}")


def _carry_out(config: RunFile | Evaluation, checkpoint: Path | None) -> None:
    if isinstance(config, Evaluation):
        evaluate(config)
    else:
        train(config, resume=str(checkpoint) if checkpoint else False, replace=True)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def newest_checkpoint(stage: Stage, out: Path) -> Path | None:
    """The newest whole checkpoint of a stage."""
    return newest_whole(stage.folder(out) / CHECKPOINTS)[0]


def _set_aside(out: Path, names: list[str], record: Record) -> None:
    """Move results that will be made again out of the way."""
    moved: dict[Path, Path] = {}
    for name in [name for name in names if (out / name).exists()]:
        number = 1
        while (target := out / REPLACED / f"{name}-{number}").exists():
            number += 1
        target.parent.mkdir(parents=True, exist_ok=True)
        (out / name).rename(target)
        moved[out / name] = target
        say(f"{name}: the earlier result is now in {target}.")
    _point_to(moved)
    for name in names:
        record.stages.pop(name, None)
    if names:
        record.write()


def _point_to(moved: dict[Path, Path]) -> None:
    """Adapters that moved with their base would otherwise take the base that is made anew for theirs."""
    places = {str(old): str(new) for old, new in moved.items()}
    for target in moved.values():
        for path in target.rglob("adapter_config.json"):
            values = json.loads(path.read_text())
            if values.get("base_model_name_or_path") in places:
                values["base_model_name_or_path"] = places[values["base_model_name_or_path"]]
                path.write_text(json.dumps(values, indent=2) + "\n")
