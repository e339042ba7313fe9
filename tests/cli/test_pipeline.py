"""``prefopt run``: a pipeline goes on where it stopped, with the very weights of one that was not stopped; what is
there is never overwritten; and what is wrong with any stage is said before the first one starts."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

import prefopt.training.run
from prefopt.cli import main
from prefopt.pipeline import check_pipeline, read_pipeline
from prefopt.training.run import make_trainer
from prefopt.training.run_file import read_yaml

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "pipeline.yaml"
ARGS = {
    "use_cpu": True,
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 4,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-2,
    "disable_tqdm": True,
}
PIPELINE = {
    "model": "base",
    "adapter": "lora",
    "lora": {"r": 4},
    "generation": {"n": 4, "max_new_tokens": 5},
    "args": ARGS,
    "stages": {
        "sft": {"algorithm": "sft", "data": "pairs.json", "args": {"max_steps": 2}},
        "reward": {"algorithm": "reward", "data": "pairs.json"},
        "ppo": {
            "algorithm": "ppo",
            "hyperparameters": {"passes": 2},
            "model": "stage:sft",
            "reward": ["stage:reward", "0.1*missing_eos_penalty"],
            "data": "prompts.json",
        },
        "accuracy": {"evaluate": "stage:reward", "data": "pairs.json"},
        "report": {"evaluate": "stage:ppo", "reward": "stage:reward", "data": "prompts.json"},
    },
}


def make_world(folder: Path) -> Path:
    tiny.save(folder / "base")
    (folder / "pairs.json").write_text(json.dumps(tiny.pairs(8)))
    (folder / "prompts.json").write_text(json.dumps([{"prompt": row["prompt"]} for row in tiny.pairs(4)]))
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(PIPELINE, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world in which the pipeline has run, without a stop, to ``whole``."""
    folder = make_world(tmp_path_factory.mktemp("pipeline"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(patch, "run", "pipeline.yaml", "--out", "whole") == 0
    return folder


@pytest.fixture
def world(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prefopt", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.name}:{key}": value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()
    }


def assert_same(one: Path, two: Path) -> None:
    first, second = weights(one), weights(two)
    assert first and first.keys() == second.keys()
    assert not [key for key, value in first.items() if not torch.equal(value, second[key])]


class StopAt(TrainerCallback):
    """Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def stop_in(monkeypatch: pytest.MonkeyPatch, algorithm: str, step: int) -> None:
    def stopping(config):
        trainer = make_trainer(config)
        if config.algorithm == algorithm:
            trainer.add_callback(StopAt(step))
        return trainer

    monkeypatch.setattr(prefopt.training.run, "make_trainer", stopping)


# ---- from beginning to end ---------------------------------------------------------------------------------------


def test_every_stage_reads_what_the_one_before_made(finished: Path) -> None:
    whole = finished / "whole"
    record = json.loads((whole / "ppo" / "prefopt.json").read_text())
    assert (record["algorithm"], record["step"], record["adapter"]) == ("ppo", 4, "lora")
    # The adapter of the SFT stage went on, with what is shared: its rank.
    assert json.loads((whole / "ppo" / "adapter_config.json").read_text())["r"] == 4
    moved = [
        key for key, value in weights(whole / "sft").items() if not torch.equal(value, weights(whole / "ppo")[key])
    ]
    assert moved
    report = json.loads((whole / "report" / "report.json").read_text())
    assert report["facts"]["start"] == "whole/sft"
    assert report["n"] == 4
    assert set(report["policy"]) == {"reward", "length", "ended", "repetition"}
    assert report["kl"]["mean"] != 0
    assert json.loads((whole / "accuracy" / "report.json").read_text())["accuracy"]["n"] == 8
    stages = json.loads((whole / "pipeline.json").read_text())["stages"]
    assert {name: made["status"] for name, made in stages.items()} == dict.fromkeys(PIPELINE["stages"], "finished")


def test_a_finished_pipeline_does_nothing_more(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (world / "whole").rglob("*")}
    assert run(monkeypatch, "run", "pipeline.yaml", "--out", "whole") == 0
    assert before == {path: path.stat().st_mtime_ns for path in (world / "whole").rglob("*")}
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("[")] == [
        f"[{number}/5] {name}: finished before, skipped" for number, name in enumerate(PIPELINE["stages"], 1)
    ]
    # What someone did to the results in the meantime is seen.
    (world / "whole" / "report" / "notes.txt").write_text("mine")
    shutil.rmtree(world / "whole" / "accuracy")
    assert run(monkeypatch, "run", "pipeline.yaml", "--out", "whole") == 0
    said = capsys.readouterr().err
    assert "[4/5] accuracy: was finished, but whole/accuracy is gone: it runs again" in said
    assert "[5/5] report: finished before, skipped; whole/report has been changed since" in said
    assert (world / "whole" / "accuracy" / "report.html").is_file()


# ---- stopped, and run again ---------------------------------------------------------------------------------------


def test_stopped_in_two_stages_it_ends_with_the_same_bits(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    again = ("run", "pipeline.yaml", "--out", "cut")
    stop_in(monkeypatch, "reward", 3)
    assert run(monkeypatch, *again) != 0
    assert "stopped in stage reward: the same command goes on" in capsys.readouterr().err
    assert not (world / "cut" / "ppo").exists()
    first = world / "cut" / "reward" / "checkpoints" / "checkpoint-2" / "trainer_state.json"
    written = first.stat().st_mtime_ns
    stop_in(monkeypatch, "ppo", 3)
    assert run(monkeypatch, *again) != 0
    assert first.stat().st_mtime_ns == written, "it began again"
    said = capsys.readouterr().err
    assert "[1/5] sft: finished before, skipped" in said
    assert "[2/5] reward: reward, goes on from cut/reward/checkpoints/checkpoint-2" in said
    # A checkpoint that was being written when the power went.
    torn = world / "cut" / "ppo" / "checkpoints" / "checkpoint-3"
    shutil.copytree(torn.with_name("checkpoint-2"), torn)
    (torn / "trainer_state.json").write_text("{")
    monkeypatch.setattr(prefopt.training.run, "make_trainer", make_trainer)
    assert run(monkeypatch, *again) == 0
    said = capsys.readouterr().err
    assert "[2/5] reward: finished before, skipped" in said
    assert "[3/5] ppo: ppo, goes on from cut/ppo/checkpoints/checkpoint-2" in said
    for stage in ("sft", "reward", "ppo"):
        assert_same(world / "whole" / stage, world / "cut" / stage)
    reports = [json.loads((world / out / "report" / "report.json").read_text()) for out in ("whole", "cut")]
    assert reports[0]["policy"] == reports[1]["policy"]
    assert reports[0]["kl"] == reports[1]["kl"]


DEADLY = """
import os, signal
calls = 0
def worth(prompts, completions):
    global calls
    calls += 1
    if calls == int(os.environ.get("DIE_AT", 0)):
        os.kill(os.getpid(), signal.SIGKILL)
    return [float(len(set(text.split()))) for text in completions]
"""


def test_a_killed_process_is_no_loss(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """With all weights trained. A rollout serves two steps here: the third is made after the checkpoint of step 4."""
    (world / "deadly.py").write_text(DEADLY)
    stage = {"algorithm": "ppo", "data": "prompts.json", "reward": "deadly.py:worth", "hyperparameters": {"passes": 2}}
    stage |= {"args": {"max_steps": 6, "learning_rate": 1e-3}}
    values = {key: PIPELINE[key] for key in ("model", "generation", "args")} | {"stages": {"ppo": stage}}
    (world / "kill.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "prefopt", "run", "kill.yaml", "--out", "killed"]
    environment = os.environ | {"DIE_AT": "3", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, cwd=world, env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert json.loads((world / "killed" / "pipeline.json").read_text())["stages"]["ppo"]["status"] == "running"
    last = world / "killed" / "ppo" / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    written = last.stat().st_mtime_ns
    assert run(monkeypatch, "run", "kill.yaml", "--out", "killed") == 0
    assert last.stat().st_mtime_ns == written, "it began again"
    assert "goes on from killed/ppo/checkpoints/checkpoint-4" in capsys.readouterr().err
    assert run(monkeypatch, "run", "kill.yaml", "--out", "unharmed") == 0
    assert_same(world / "unharmed" / "ppo", world / "killed" / "ppo")


def test_killed_between_the_last_step_and_the_record_it_only_saves(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights(world / "whole" / "ppo")
    record = json.loads((world / "whole" / "pipeline.json").read_text())
    record["stages"]["ppo"] |= {"status": "running", "output": None}
    (world / "whole" / "pipeline.json").write_text(json.dumps(record))
    for file in (world / "whole" / "ppo").glob("*.*"):
        file.unlink()
    assert run(monkeypatch, "run", "pipeline.yaml", "--out", "whole") == 0
    after = weights(world / "whole" / "ppo")
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


# ---- changed -------------------------------------------------------------------------------------------------------


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: str) -> str:
    capsys.readouterr()
    assert run(monkeypatch, "run", *arguments) == 2
    said = capsys.readouterr().err.splitlines()
    assert not [line for line in said if line.startswith("[")], "a stage has started"
    (line,) = [line for line in said if "error:" in line]
    return line.removeprefix("prefopt: error: ")


def test_what_was_made_from_something_else_is_not_overwritten(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    given = ("pipeline.yaml", "--out", "whole")
    before = {path: path.read_bytes() for path in (world / "whole").rglob("*") if path.is_file()}
    line = refused(monkeypatch, capsys, *given, "--set", "reward.args.learning_rate=0.5")
    assert "stage reward: whole/reward was made from something else (args.learning_rate was 0.01 and is 0.5)" in line
    assert "--from reward" in line
    # A shared setting: the first stage that it concerns is named.
    assert "stage sft: " in refused(monkeypatch, capsys, *given, "--set", "args.seed=4")
    (world / "prompts.json").write_text(json.dumps([{"prompt": row["prompt"]} for row in tiny.pairs(5)]))
    assert "stage ppo: whole/ppo was made from something else (prompts.json has other content)" in refused(
        monkeypatch, capsys, *given
    )
    shutil.copy(world / "base" / "config.json", world / "whole" / "sft" / "config.json")
    assert "stage ppo: whole/ppo was made from something else (stage:sft has other content" in refused(
        monkeypatch, capsys, *given
    )
    (world / "whole" / "sft" / "config.json").unlink()
    assert before == {path: path.read_bytes() for path in (world / "whole").rglob("*") if path.is_file()}


def test_from_makes_stages_anew_and_loses_nothing(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    old = {name: weights(world / "whole" / name) for name in ("sft", "ppo")}
    given = ("run", "pipeline.yaml", "--out", "whole", "--from", "ppo", "--set", "ppo.args.max_steps=2")
    assert run(monkeypatch, *given) == 0
    said = capsys.readouterr().err
    assert "[2/5] reward: finished before, skipped" in said
    assert "[3/5] ppo: ppo\n" in said
    assert json.loads((world / "whole" / "ppo" / "prefopt.json").read_text())["step"] == 2
    kept = weights(world / "whole" / "replaced" / "ppo-1")
    assert all(torch.equal(value, kept[key]) for key, value in old["ppo"].items())
    assert (world / "whole" / "replaced" / "report-1" / "report.html").is_file()
    # And once more: the numbers go on.
    assert run(monkeypatch, "run", *given[1:4], "--from", "report", *given[6:]) == 0
    first, second = (world / "whole" / "replaced" / f"report-{number}" / "report.json" for number in (1, 2))
    assert json.loads(first.read_text())["policy"] != json.loads(second.read_text())["policy"]


def test_a_moved_adapter_keeps_its_base(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base that is made anew in its place is another one."""
    adapters = {"algorithm": "sft", "model": "stage:sft", "data": "pairs.json", "adapter": "lora"}
    stages = {"sft": {"algorithm": "sft", "data": "pairs.json"}, "more": adapters}
    values = {"model": "base", "args": ARGS | {"max_steps": 1, "save_strategy": "no"}, "stages": stages}
    (world / "two.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    assert run(monkeypatch, "run", "two.yaml", "--out", "two") == 0
    assert run(monkeypatch, "run", "two.yaml", "--out", "two", "--from", "sft") == 0
    bases = [
        json.loads((world / "two" / place / "adapter_config.json").read_text())["base_model_name_or_path"]
        for place in ("more", "replaced/more-1")
    ]
    assert bases == ["two/sft", "two/replaced/sft-1"]


def test_a_folder_that_someone_else_made_is_left_alone(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (world / "new" / "reward").mkdir(parents=True)
    (world / "new" / "reward" / "notes.txt").write_text("mine")
    line = refused(monkeypatch, capsys, "pipeline.yaml", "--out", "new")
    assert "stage reward: new/reward is there and was not made by this pipeline" in line
    assert line == refused(monkeypatch, capsys, "pipeline.yaml", "--out", "new", "--from", "sft")
    assert (world / "new" / "reward" / "notes.txt").read_text() == "mine"


def test_check_starts_nothing(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run(monkeypatch, "run", "pipeline.yaml", "--out", "nothing", "--check") == 0
    assert not (world / "nothing").exists()
    assert "ppo (ppo): to run" in capsys.readouterr().err
    assert run(monkeypatch, "run", "pipeline.yaml", "--out", "whole", "--check", "--from", "accuracy") == 0
    said = capsys.readouterr().err
    assert "ppo (ppo): finished" in said and "report (evaluates stage:ppo): runs anew" in said
    assert (world / "whole" / "report").is_dir()


# ---- wrong ---------------------------------------------------------------------------------------------------------

WRONG = {
    "an unknown algorithm": ("ppo.algorithm=pppo", "stage ppo: there is no algorithm 'pppo'. Did you mean 'ppo'?"),
    "an unknown hyperparameter": (
        "ppo.hyperparameters.pases=2",
        "stage ppo: ppo has no hyperparameter 'pases'. Did you mean 'passes'?",
    ),
    "a hyperparameter out of bounds": (
        "ppo.hyperparameters.passes=0",
        "stage ppo: ppo: passes=0 is out of range: it must be >= 1",
    ),
    "an unknown section": ("ppo.rewrd=x", "stage ppo: config has no setting 'rewrd'. Did you mean 'reward'?"),
    "an unknown argument": ("ppo.args.learning_rat=1", "stage ppo: args has no setting 'learning_rat'. Did you mean"),
    "an impossible argument": (
        "ppo.args.save_strategy=sometimes",
        "stage ppo: args: sometimes is not a valid SaveStrategy",
    ),
    "an unknown stage": ("ppo.model=stage:sftt", "stage ppo reads stage:sftt, and there is no stage 'sftt'. Did you"),
    "a later stage": ("reward.model=stage:ppo", "stage reward reads stage:ppo, which does not run before it"),
    "itself": ("ppo.reference=stage:ppo", "stage ppo reads stage:ppo, which does not run before it"),
    "a report as a model": (
        "report.against=stage:accuracy",
        "stage report: stage:accuracy makes a report and no",
    ),
    "a reward model as a policy": ("ppo.model=stage:reward", "stage ppo: model: stage:reward is a reward model"),
    "a policy as a reward": ("ppo.reward=0.5*stage:sft", "stage ppo: reward: stage:sft is a language model"),
    "a policy of this disk as a reward": ("report.reward=base", "stage report: reward: base is a language model"),
    "a reward model on a policy's adapter": (
        "reward.model=stage:sft",
        "stage reward: model: stage:sft is an adapter",
    ),
    "a misspelt reward": ("report.reward=lenght_penalty", "stage report: reward 'lenght_penalty' is no built-in"),
    "no reward": ("ppo.reward=null", "stage ppo: ppo needs a reward"),
    "a reward of an offline algorithm": ("sft.reward=stage:reward", "stage sft reads stage:reward, which does not run"),
    "no such data": ("ppo.data=prompt.json", "stage ppo: the dataset prompt.json does not exist"),
    "data of another kind": ("reward.data=prompts.json", "stage reward: prompts.json: "),
    "no data": ("report.data=null", "stage report: data is missing"),
    "no such model": ("ppo.model=./bse", "stage ppo: model './bse' was found neither"),
    "a setting of the data": (
        "report.data.max_lenght=5",
        "stage report: data has no setting 'max_lenght'. Did you",
    ),
    "a setting of the sampling": ("ppo.generation.nn=5", "stage ppo: generation has no setting 'nn'"),
    "a setting of the watch": ("ppo.watch.stopp=true", "stage ppo: watch has no setting 'stopp'. Did you mean 'stop'"),
    "a seed that is none": ("report.seed=many", "stage report: config: seed='many'"),
    "generation of a reward report": ("accuracy.generation.n=2", "stage accuracy: whole/reward is a reward model"),
    "out of a stage": ("ppo.out=there", "stage ppo: leave out out"),
    "an output_dir": ("ppo.args.output_dir=there", "stage ppo: leave args.output_dir out"),
    "a lora of its own on an adapter": ("ppo.lora.r=8", "stage ppo: model stage:sft brings an adapter of its own"),
    "no such stage to set": (
        "pppo.data=x",
        "begins with no stage (sft, reward, ppo, accuracy, report) or shared",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_before_anything_starts(
    case: str, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(finished)
    assignment, expected = WRONG[case]
    line = refused(monkeypatch, capsys, "pipeline.yaml", "--out", "wrong", "--set", assignment)
    assert expected.replace("whole/", "wrong/") in line
    assert not (finished / "wrong").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    {
        "stages: {}": "stages must be a mapping",
        "algorithm: dpo": "this is a config of `prefopt train --config FILE`",
        "reward: x\nstages: {a: {algorithm: sft}}": "reward belongs into a stage",
        "modle: x\nstages: {a: {algorithm: sft}}": "pipeline has no setting 'modle'. Did you mean 'model'?",
        "stages: {a: {model: x}}": "stage a needs `algorithm: NAME` to train or `evaluate: MODEL`",
        "stages: {a: {algorithm: sft, evaluate: x}}": "stage a has both",
        "stages: {a/b: {algorithm: sft}}": "'a/b' cannot be the name of a stage",
        "stages: {model: {algorithm: sft}}": "'model' cannot be the name of a stage",
        "stages: {a: {algorithm: sft, data: pairs.json}}": "stage a: model is missing",
        "stages:\n  a: {algorithm: sft}\n  a: {algorithm: dpo}": "the key 'a' is there twice",
    }.items(),
)
def test_what_is_no_pipeline(
    text: str, expected: str, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(finished)
    (finished / "wrong.yaml").write_text(text)
    assert expected in refused(monkeypatch, capsys, "wrong.yaml", "--out", "wrong")


def test_several_processes_are_refused(finished: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(finished)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "a pipeline runs on one process" in refused(monkeypatch, capsys, "pipeline.yaml", "--out", "wrong")


def test_a_broken_record_is_not_taken_for_an_empty_one(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (world / "whole" / "pipeline.json").write_text("[]")
    assert "whole/pipeline.json is no record of a pipeline" in refused(
        monkeypatch, capsys, "pipeline.yaml", "--out", "whole"
    )


# ---- the example, and the stage by itself ---------------------------------------------------------------------------


README = Path(__file__).parents[2] / "README.md"
SHOWN = {"example": EXAMPLE.read_text(), "readme": README.read_text().split("```yaml\n")[1].split("```")[0]}


@pytest.mark.parametrize("name", SHOWN)
def test_what_we_show_is_valid(name: str, world: Path) -> None:
    (world / "data").mkdir()
    for data in ("demonstrations", "pairs", "held-out-pairs", "prompts", "held-out-prompts"):
        for folder in (world, world / "data"):
            if not (folder / f"{data}.json").exists():
                shutil.copy(world / ("prompts.json" if "prompts" in data else "pairs.json"), folder / f"{data}.json")
    (world / "shown.yaml").write_text(SHOWN[name])
    pipeline = read_pipeline(read_yaml(world / "shown.yaml") | {"model": "base"}, [], "shown")
    check_pipeline(pipeline)
    names = [stage.name for stage in pipeline.stages]
    assert [stage for stage in names if stage != "reward-report"] == ["sft", "reward", "ppo", "report"]
    assert pipeline.stages[-1].values["against"] == "stage:sft"


@pytest.mark.parametrize(
    ("model", "adapter", "reward"),
    [("base", "lora", "whole/reward"), ("base", None, "full"), ("whole/sft", None, "whole/reward")],
)
def test_ppo_alone_takes_a_reward_model(
    model: str, adapter: str | None, reward: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reward model with weights of its own, or an adapter on the same base; and a policy of every kind."""
    quick = [part for key, value in ARGS.items() for part in (f"--{key.replace('_', '-')}", str(value).lower())]
    quick += ["--max-steps", "1", "--save-strategy", "no"]
    if reward == "full":
        command = ("train", "reward", "--model", "base", "--data", "pairs.json", "--out", "full")
        assert run(monkeypatch, *command, *quick) == 0
    command = ["train", "ppo", "--model", model, "--reward", reward, "--data", "prompts.json", "--out", "o"]
    command += ["--adapter", adapter] if adapter else []
    assert run(monkeypatch, *command, *quick, "--max-new-tokens", "4", "--n", "2") == 0
    file = "adapter_model.safetensors" if adapter or "sft" in model else "model.safetensors"
    assert (world / "o" / file).is_file()
