"""A pipeline file: named stages in order, what they share, and which of them read the results of others."""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.core.arguments import file_keys, read_arguments, sections
from prefopt.core.errors import PrefoptError, UsageError, did_you_mean
from prefopt.core.settings import refuse_unknown
from prefopt.evaluation.spec import Evaluation
from prefopt.training.run_file import assign, read_run
from prefopt.training.spec import RunFile

KEYS = {**file_keys(RunFile), **file_keys(Evaluation)}
SHARED = tuple(key for key, one in file_keys(RunFile).items() if one.metadata["shared"])
"""Sections that stand for all stages when they stand above ``stages``; a stage's own keys win."""
RESULTS = re.compile(r"(?<![\w:/.-])stage:([\w.-]*)")
"""How a text names the result of an earlier stage."""
READING = tuple(key for key, one in KEYS.items() if one.metadata["model"])
"""Keys of a stage that may do so."""
REPLACED = "replaced"
"""Folder of results that were made again."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: of the stage, of its folder, and what others call it by.
        values: its config with what is shared, without ``out``; results of other stages as ``stage:NAME``.
    """

    name: str
    values: Mapping[str, Any]

    @property
    def evaluates(self) -> bool:
        """Whether it evaluates rather than trains."""
        return "evaluate" in self.values

    @property
    def what(self) -> str:
        """What it does, in words."""
        return f"evaluates {self.values['evaluate']}" if self.evaluates else str(self.values["algorithm"])

    @property
    def reads(self) -> list[str]:
        """The stages whose results it reads."""
        found: dict[str, None] = {}
        for key in READING:
            replace_results(self.values.get(key), lambda name: found.setdefault(name) or "")
        return list(found)

    def folder(self, out: Path) -> Path:
        """Where its result goes."""
        return out / self.name

    def resolved(self, out: Path) -> dict[str, Any]:
        """Its config with folders in place of names of stages."""
        values = copy.deepcopy(dict(self.values))
        for key in READING:
            if key in values:
                values[key] = replace_results(values[key], lambda name: str(out / name))
        return values | {"out": str(self.folder(out))}

    def config(self, out: Path) -> RunFile | Evaluation:
        """The same, validated.

        Raises:
            UsageError: naming the stage, the key and what is wrong with it.
        """
        try:
            values = self.resolved(out)
            return read_arguments(Evaluation, values) if self.evaluates else read_run(values)
        except PrefoptError as error:
            raise about(self.name, error) from None


@dataclass(frozen=True)
class Pipeline:
    """Stages in order.

    Attributes:
        out: folder of the whole; each stage's result is in the folder of its name.
        stages: each reads only results of those before it.
    """

    out: Path
    stages: tuple[Stage, ...]


def about(name: str, error: PrefoptError) -> PrefoptError:
    """The same error, with the stage that it is about."""
    return type(error)(f"stage {name}: {error}")


def replace_results(value: Any, place: Callable[[str], str]) -> Any:
    """A value of the config with every ``stage:NAME`` in it replaced by what ``place`` says of the name."""
    if isinstance(value, str):
        return RESULTS.sub(lambda found: place(found[1]), value)
    if isinstance(value, (list, tuple)):
        return [replace_results(each, place) for each in value]
    if isinstance(value, Mapping):
        return {key: replace_results(each, place) for key, each in value.items()}
    return value


def read_pipeline(values: Mapping[str, Any], assignments: list[str], out: str | None = None) -> Pipeline:
    """The pipeline of a file's mapping.

    Args:
        values: of the file.
        assignments: ``stage.section.key=value``, or ``section.key=value`` of a shared section; they win over the file.
        out: folder of the whole; wins over the file's.

    Raises:
        UsageError: a key, a stage or a name of a stage that cannot be.
    """
    values = copy.deepcopy(dict(values))
    stages = _stages(values)
    for assignment in assignments:
        _assign(values, stages, assignment)
    refuse_unknown("pipeline", values, ["stages", "out", *SHARED], hint=_belongs)
    out = out or values.get("out")
    if not out:
        raise UsageError("out is missing: give --out, or out: in the pipeline file.")
    if Path(out).is_file():
        raise UsageError(f"--out {out} is a file; name a folder.")
    shared = {key: values[key] for key in SHARED if key in values}
    made: list[Stage] = []
    for name, own in stages.items():
        made.append(Stage(name, _merged(name, own, shared, made)))
        _check_reads(made[-1], [stage.name for stage in made[:-1]], list(stages))
    return Pipeline(Path(out), tuple(made))


def _belongs(key: str) -> str:
    own = key in (*sections(RunFile), *sections(Evaluation))
    return f" {key} belongs into a stage." if own else ""


def _stages(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The stages by name, each a mapping whose ``data`` is one too."""
    stages = values.get("stages")
    if "algorithm" in values and stages is None:
        raise UsageError(
            "pipeline: there are no stages, but an algorithm: this is a config of `prefopt train --config FILE`. As a "
            "pipeline it would be a stage: {stages: {NAME: ...}}."
        )
    if not isinstance(stages, dict) or not stages:
        raise UsageError("pipeline: stages must be a mapping from names to stages, in the order in which they run.")
    for name, own in stages.items():
        if not re.fullmatch(r"[A-Za-z]\w*(-\w+)*", str(name)) or name in (*SHARED, "stages", "out", REPLACED):
            raise UsageError(
                f"pipeline: {name!r} cannot be the name of a stage: it is a folder of letters, digits, _ and -, and "
                f"none of {', '.join((*SHARED, REPLACED))}."
            )
        if not isinstance(own, dict) or not {"algorithm", "evaluate"} & set(own):
            near = did_you_mean(next((str(key) for key in own), "") if isinstance(own, dict) else "", ("algorithm",))
            raise UsageError(f"stage {name} needs `algorithm: NAME` to train or `evaluate: MODEL`.{near}")
        if {"algorithm", "evaluate"} <= set(own):
            raise UsageError(f"stage {name} has both algorithm and evaluate: make two stages of it.")
        own["data"] = _data(own.get("data"), "eval" if "evaluate" in own else "train", f"stage {name}")
    if "data" in values:
        values["data"] = _data(values["data"], "train", "pipeline")
    return stages


def _data(given: Any, key: str, where: str) -> dict[str, Any]:
    if given is None or isinstance(given, str):
        return {} if given is None else {key: given}
    if not isinstance(given, dict):
        raise UsageError(f"{where}: data={given!r} must be a path, a hub id, or a mapping.")
    return given


def _assign(values: dict[str, Any], stages: dict[str, dict[str, Any]], assignment: str) -> None:
    first = assignment.split(".")[0].split("=")[0]
    if first in stages and "." in assignment.split("=")[0]:
        assign(stages[first], assignment.split(".", 1)[1])
        for name, own in stages.items():
            own["data"] = _data(own.get("data"), "eval" if "evaluate" in own else "train", f"stage {name}")
    elif first in SHARED:
        assign(values, assignment)
        if first == "data":
            values["data"] = _data(values["data"], "train", "pipeline")
    else:
        near = did_you_mean(first, (*stages, *SHARED))
        raise UsageError(f"--set {assignment!r} begins with no stage ({', '.join(stages)}) or shared section.{near}")


def _merged(name: str, own: dict[str, Any], shared: Mapping[str, Any], before: list[Stage]) -> dict[str, Any]:
    """A stage's values over those that are shared, as far as they concern it."""
    for key in ("out", "resume"):
        if key in own:
            raise UsageError(f"stage {name}: leave {key} out: the pipeline decides it.")
    if "output_dir" in (own.get("args") or {}) or "output_dir" in (shared.get("args") or {}):
        raise UsageError(f"stage {name}: leave args.output_dir out: checkpoints go to the stage's folder.")
    values = dict(own)
    for key in _concerning(name, own, shared, before):
        if isinstance(shared[key], dict) and isinstance(own.get(key, {}), dict):
            values[key] = {**shared[key], **own.get(key, {})}
        else:
            values.setdefault(key, shared[key])
    if "evaluate" in own:
        if own["data"].get("train"):
            raise UsageError(f"stage {name}: it trains on nothing: give data: PATH, or data: {{eval: PATH}}.")
        values["data"].pop("train", None)
        if "against" not in own:
            values |= _start_of(own["evaluate"], before)
    return {key: value for key, value in values.items() if value is not None}


def _concerning(name: str, own: dict[str, Any], shared: Mapping[str, Any], before: list[Stage]) -> list[str]:
    """The shared sections that say something about a stage."""
    if "evaluate" in own:
        scored = "reward" in own
        return [key for key in shared if key in ("data", "trust_remote_code") or (key == "generation" and scored)]
    keys = list(shared)
    if "generation" in keys and not _online(name, own):
        keys.remove("generation")
    # A model that brings an adapter trains it further, and `lora` would have no effect.
    model = str(own.get("model", shared.get("model", "")))
    if "lora" in keys and (_brings_adapter(model, before) or own.get("adapter", shared.get("adapter")) is None):
        keys.remove("lora")
    return keys


def _online(name: str, own: dict[str, Any]) -> bool:
    from prefopt.algorithms import get_algorithm

    try:
        return get_algorithm(own["algorithm"], **(own.get("hyperparameters") or {})).online
    except PrefoptError as error:
        raise about(name, error) from None


def _brings_adapter(model: str, before: list[Stage]) -> bool:
    named = RESULTS.fullmatch(model)
    if named:
        stage = next((stage for stage in before if stage.name == named[1]), None)
        return stage is not None and makes_adapter(stage, before)
    return (Path(model) / "adapter_config.json").is_file()


def makes_adapter(stage: Stage, stages: list[Stage] | tuple[Stage, ...]) -> bool:
    """Whether the result of a stage is an adapter."""
    own, model = stage.values.get("adapter"), str(stage.values.get("model", ""))
    return not stage.evaluates and (own is not None or _brings_adapter(model, list(stages)))


def _start_of(evaluated: Any, before: list[Stage]) -> dict[str, Any]:
    """What the policy that is evaluated was trained from, to compare it with."""
    named = RESULTS.fullmatch(str(evaluated))
    stage = next((stage for stage in before if named and stage.name == named[1]), None)
    if stage is None or stage.evaluates or "model" not in stage.values:
        return {}
    return {} if trains_rewards(stage) else {"against": stage.values["model"]}


def trains_rewards(stage: Stage) -> bool:
    """Whether the result of a training stage is a reward model."""
    from prefopt.algorithms import get_algorithm

    hyperparameters = stage.values.get("hyperparameters") or {}
    return get_algorithm(stage.values["algorithm"], **hyperparameters).objective.needs.rewards


def _check_reads(stage: Stage, before: list[str], everyone: list[str]) -> None:
    for name in stage.reads:
        if name in before:
            continue
        if name == stage.name or name in everyone:
            raise UsageError(f"stage {stage.name} reads stage:{name}, which does not run before it: change the order.")
        near = did_you_mean(name, before)
        raise UsageError(
            f"stage {stage.name} reads stage:{name}, and there is no stage {name!r}.{near} Those before it: "
            f"{', '.join(before) or 'none'}."
        )
