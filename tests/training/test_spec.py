"""Every argument of a run is written once: signature, descriptions, files, flags and plans follow."""

import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml

import prefopt
from prefopt.core.arguments import file_keys, read_arguments, schema
from prefopt.core.errors import UsageError
from prefopt.evaluation.spec import Evaluation
from prefopt.training.run_file import assign, assign_flag, read_run
from prefopt.training.spec import PlanSpec, RunFile, RunSpec

ARGUMENTS = [
    "model", "algorithm", "train_dataset", "eval_dataset", "adapter", "reference", "reward", "processing_class",
    "data", "generation", "args", "callbacks", "lora", "reference_cache", "share_prompts", "trust_remote_code",
]  # fmt: skip
RUN = {"algorithm": "dpo", "model": "m", "out": "o"}


def test_the_signature_of_the_trainer() -> None:
    parameters = inspect.signature(prefopt.Trainer).parameters
    assert list(parameters) == ARGUMENTS
    positional = [name for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert positional == ["model", "algorithm", "train_dataset", "eval_dataset"]
    required = [name for name, one in parameters.items() if one.default is one.empty]
    assert required == ["model", "algorithm"]
    assert list(inspect.signature(prefopt.plan).parameters) == [*ARGUMENTS, "device", "prompt_length", "made"]


@pytest.mark.parametrize("shown", [prefopt.Trainer.__init__, prefopt.plan])
def test_the_help_describes_every_argument(shown: object) -> None:
    text = inspect.getdoc(shown)
    arguments = text.split("Args:\n")[1].split("\n\n")[0]
    for name in ARGUMENTS:
        assert f"\n    {name}: " in "\n" + arguments
    assert text.index("Args:") < text.index("Raises:")
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: prefopt.Trainer("m", "dpo", adaptor="lora"),
            "Trainer has no argument 'adaptor'. Did you mean 'adapter'?",
        ),
        (lambda: prefopt.plan("m", "dpo", devise="cpu"), "plan has no argument 'devise'. Did you mean 'device'?"),
    ],
)
def test_an_unknown_argument_is_told_with_the_nearest_one(call: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert str(caught.value).startswith(message)


def test_a_missing_argument_is_an_error_of_python() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'algorithm'"):
        prefopt.Trainer("m")


def test_a_plan_takes_what_the_trainer_takes(tmp_path: Path) -> None:
    given = {
        "model": str(tiny.save(tmp_path / "model")),
        "algorithm": "dpo",
        "train_dataset": tiny.pairs(4),
        "eval_dataset": tiny.pairs(2),
        "args": {"max_steps": 1, "use_cpu": True, "save_strategy": "no", "output_dir": str(tmp_path)},
        "callbacks": [prefopt.Watch()],
        "data": {"max_length": 40},
    }
    plan = prefopt.plan(**given, device="cpu")
    from_object = prefopt.plan(**{**given, "args": prefopt.Trainer(**given).args}, device="cpu")
    assert plan.run.max_length == 40
    assert from_object.total == plan.total > 0


# ---- files ----------------------------------------------------------------------------------------------------------


def test_a_file_holds_what_the_trainer_takes() -> None:
    text = """
    algorithm: dpo
    model: m
    out: o
    hyperparameters: {beta: 0.2}
    data: {train: a.json, eval: b.json, max_length: 60}
    adapter: lora
    lora: {r: 4}
    reference: r
    reference_cache: c
    args: {learning_rate: 5e-3}
    watch: {stop: true}
    share_prompts: false
    trust_remote_code: true
    resume: true
    """
    run = read_run(yaml.safe_load(text) | {"args": {"learning_rate": 5e-3}})
    made = run.arguments()
    assert list(made) == ARGUMENTS
    assert made["algorithm"].hyperparameters == {"beta": 0.2}
    assert (made["train_dataset"], made["eval_dataset"], made["data"]) == ("a.json", "b.json", {"max_length": 60})
    assert made["args"] == {"output_dir": "o/checkpoints", "learning_rate": 5e-3}
    assert made["callbacks"][0].stop is True
    assert run.resume is True
    assert made["share_prompts"] is False
    assert read_run(RUN).share_prompts is True


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"adaptr": 1}, "config has no setting 'adaptr'. Did you mean 'adapter'? It has "),
        ({"max_lenght": 1}, "config has no setting 'max_lenght'. Did you mean 'max_length' in section 'data'?"),
        ({"callbacks": []}, "config has no setting 'callbacks'."),
        ({"model": None}, "model is missing: give --model, or model: in the config file."),
        ({"model": 3}, "config: model=3 must be text."),
        ({"share_prompts": "no"}, "config: share_prompts='no' must be true or false."),
        ({"data": 3}, "config: data=3 must be a mapping."),
        ({"data": {"train": 3}}, "config: data.train=3 must be text."),
        ({"reward": 3}, "config: reward=3 must be text or a list or a mapping."),
    ],
)
def test_what_a_file_cannot_hold_is_told_in_one_line(values: dict, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_run(RUN | values)
    assert str(caught.value).startswith(message)


def test_what_reads_a_file_leaves_it_as_it_is() -> None:
    values = RUN | {"data": {"train": "a", "max_length": 3}}
    before = json.dumps(values)
    read_run(values)
    assert json.dumps(values) == before


def test_an_empty_section_of_a_file_can_be_written_into() -> None:
    values = {"args": None, "data": {"max_length": 3}}
    assign(values, "args.max_steps=2")
    assign(values, "data.truncation=keep-end")
    assign_flag(values, "--learning-rate", "5e-3", "dpo")
    assert values == {
        "args": {"max_steps": 2, "learning_rate": 5e-3},
        "data": {"max_length": 3, "truncation": "keep-end"},
    }
    with pytest.raises(UsageError, match="--max-steps: args=3 is not a section"):
        assign_flag({"args": 3}, "--max-steps", "2", "dpo")


def test_a_stage_that_evaluates_is_read_likewise() -> None:
    made = read_arguments(Evaluation, {"evaluate": "m", "data": {"eval": "d", "split": "test"}, "out": "o"})
    assert (made.model, made.data, made.settings, made.seed) == ("m", "d", {"split": "test"}, 0)


def test_the_schema_of_a_run_file() -> None:
    made = schema(RunFile)
    assert made["required"] == ["model", "algorithm", "out"]
    assert made["additionalProperties"] is False
    properties = made["properties"]
    assert set(properties) == {key.split(".")[0] for key in file_keys(RunFile)}
    assert {"train", "eval", *(one.name for one in dataclasses.fields(prefopt.DataSettings))} == set(
        properties["data"]["properties"]
    )
    assert properties["data"]["properties"]["max_dropped"] == {
        "type": "number",
        "description": "largest share of rows, ties aside, that may be dropped before the run refuses",
        "default": 0.5,
        "minimum": 0,
        "maximum": 1,
    }
    assert properties["data"]["properties"]["truncation"]["enum"] == ["drop", "keep-start", "keep-end"]
    assert properties["data"]["properties"]["max_length"]["type"] == ["integer", "null"]
    assert "kl_budget" in properties["watch"]["properties"]
    assert "learning_rate" in properties["args"]["properties"]
    assert "reasons" not in properties["watch"]["properties"]
    assert properties["share_prompts"]["type"] == "boolean"
    assert all(one["description"] for one in properties.values())
    json.dumps(made)


def test_no_argument_is_declared_twice() -> None:
    for kind in (RunFile, PlanSpec):
        own = [name for name in kind.__annotations__ if name != "_"]
        assert not {*own} & {one.name for one in dataclasses.fields(RunSpec)}


# ---- a new argument -------------------------------------------------------------------------------------------------

FIELD = """    novelty: int = field(default=7, metadata=argument("Measure of newness.", file=int, shared=True))
    share_prompts: bool"""
USE = """
import inspect, sys, typing
import prefopt
from prefopt.cli import main
from prefopt.core.arguments import schema
from prefopt.pipeline import read_pipeline
from prefopt.training.run_file import assign, assign_flag, read_run
from prefopt.training.spec import RunFile

assert prefopt.__file__.startswith(sys.argv[1]), prefopt.__file__
assert inspect.signature(prefopt.Trainer).parameters["novelty"].default == 7
assert inspect.signature(prefopt.plan).parameters["novelty"].default == 7
assert "novelty: Measure of newness." in inspect.getdoc(prefopt.Trainer.__init__)
assert schema(RunFile)["properties"]["novelty"]["description"] == "Measure of newness."
assert read_run({"algorithm": "dpo", "model": "m", "out": "o", "novelty": 3}).arguments()["novelty"] == 3
stages = {"novelty": 4, "stages": {"a": {"algorithm": "dpo", "model": "m", "data": "d"}}}
pipeline = read_pipeline(stages, [], "o")
assert pipeline.stages[0].config(pipeline.out).novelty == 4
seen = []
import prefopt.cli.train, prefopt.cli.plan
prefopt.cli.train.train = lambda run, **_: seen.append(run.novelty)
prefopt.cli.plan.plan_run = lambda run: seen.append(run.novelty) or sys.exit()
for command in ("train", "plan"):
    sys.argv = ["prefopt", command, "dpo", "--model", "m", "--data", "d", "--novelty", "5"]
    sys.argv += ["--out", "o"] if command == "train" else []
    try:
        main()
    except SystemExit as end:
        assert not end.code
assert seen == [5, 5], seen
"""


def test_a_new_argument_is_written_in_one_place(tmp_path: Path) -> None:
    """One line more in a copy of the package: Python, help, files, schema, pipelines, flags and plans know it."""
    shutil.copytree(Path(prefopt.__file__).parent, tmp_path / "prefopt")
    spec = tmp_path / "prefopt" / "training" / "spec.py"
    text = spec.read_text()
    assert text.count("    share_prompts: bool") == 1
    spec.write_text(text.replace("    share_prompts: bool", FIELD))
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
