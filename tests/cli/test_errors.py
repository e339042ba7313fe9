"""Bad input on the command line: one clear line that names the thing and the remedy, exit status 2, no traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from prefopt.cli import main


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tiny.save(folder / "model")
    (tiny.save(folder / "weightless") / "model.safetensors").unlink()
    rows = tiny.pairs(6)
    equal = [{**row, "rejected": row["chosen"]} for row in rows]
    long = [{**row, "prompt": "a " * 80} for row in rows]
    (folder / "pairs.json").write_text(json.dumps(rows))
    (folder / "empty.json").write_text("[]")
    (folder / "equal.json").write_text(json.dumps(equal))
    (folder / "long.json").write_text(json.dumps(long))
    (folder / "column.json").write_text(json.dumps([{"prompt": "a", "choosen": "b", "rejected": "c"}]))
    (folder / "broken.json").write_text('[{"prompt": "a", ')
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "reward.py").write_text("number = 3\ndef short(prompts, completions):\n    return [1.0]\n")
    labelled = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in rows]
    (folder / "labelled.json").write_text(json.dumps(labelled[:1]))
    (folder / "one.json").write_text(json.dumps(rows[:1]))
    (folder / "online.yaml").write_text(f"algorithm: rloo\nmodel: {folder / 'model'}\n")
    for split in ("train", "test"):
        (folder / "splits").mkdir(exist_ok=True)
        (folder / "splits" / f"{split}.jsonl").write_text(json.dumps(rows[0]))
    (folder / "field.yaml").write_text("algorithm: dpo\nlerning_rate: 1\n")
    stages = "stages: {first: {algorithm: sft}, second: {algorithm: orpo, model: 'stage:first'}}"
    (folder / "stages.yaml").write_text(f"model: {folder / 'model'}\n{stages}\n")
    (folder / "section.yaml").write_text("algorithm: dpo\nadaptr: lora\n")
    return folder


CASES = {
    "unknown algorithm": (["train", "dpoo"], "no algorithm 'dpoo'. Did you mean 'dpo'?"),
    "ambiguous algorithm": (["train", "aot"], "'aot' names several losses"),
    "unknown hyperparameter": (["train", "dpo", "--bta", "1"], "no option --bta. Did you mean 'beta'?"),
    "hyperparameter of another": (["train", "dpo", "--gamma", "1"], "no option --gamma."),
    "value out of bounds": (["train", "dpo", "--beta", "-1"], "dpo: beta=-1 is out of range: it must be > 0"),
    "flag without value": (["train", "dpo", "--beta"], "--beta needs a value"),
    "empty dataset": (["train", "dpo", "--data", "{w}/empty.json"], "empty"),
    "missing column": (["train", "dpo", "--data", "{w}/column.json"], "chosen"),
    "nothing but equal pairs": (["train", "dpo", "--data", "{w}/equal.json"], "chosen equal to rejected"),
    "nothing but long prompts": (["train", "dpo", "--data", "{w}/long.json"], "64 tokens"),
    "not JSON": (["train", "dpo", "--data", "{w}/broken.json"], "not JSON"),
    "no such data": (["train", "dpo", "--data", "{w}/nothing.json"], "nothing.json"),
    "no such model": (["train", "dpo", "--model", "{w}/nothing"], "no such folder"),
    "unknown data setting": (["train", "dpo", "--set", "data.max_lenght=5"], "Did you mean 'max_length'"),
    "unknown training argument": (["train", "dpo", "--set", "args.learning_rat=5"], "Did you mean 'learning_rate'"),
    "unknown section": (["train", "dpo", "--set", "dta.train=5"], "no setting 'dta'. Did you mean 'data'"),
    "no reward": (["train", "rejection_sampling"], "needs a reward"),
    "no such reward": (
        ["train", "rejection_sampling", "--reward", "{w}/reward.py:long"],
        "reward.py has no 'long'",
    ),
    "reward that is no function": (
        ["train", "rejection_sampling", "--reward", "{w}/reward.py:number"],
        "reward.py:number' must be a function f(prompts, completions) that returns a list of numbers, and its type is",
    ),
    "nothing to compare a completion with": (
        ["train", "grpo", "--reward", "{w}/reward.py:short", "--n", "1"],
        "grpo compares completions of the same prompt, and learns nothing from 1: set n of generation (--n) to 2",
    ),
    "reward that does not compile": (
        ["train", "rejection_sampling", "--reward", "{w}/broken.py:f"],
        "broken.py cannot be loaded: line 1: invalid syntax",
    ),
    "reward of the wrong length": (
        ["train", "rejection_sampling", "--reward", "{w}/reward.py:short", "--max-new-tokens", "4"],
        "reward short returned 1 values for",
    ),
    "a misspelt built-in reward": (
        ["train", "rejection_sampling", "--reward", "lenght_penalty"],
        "reward 'lenght_penalty' is no built-in (length_penalty, ",
    ),
    "a reward with a value out of bounds": (
        ["train", "rejection_sampling", "--reward", "{w}/reward.py:short", "--reward", "0.5*length_penalty(limit=-1)"],
        "length_penalty: limit=-1 is out of range: it must be >= 0",
    ),
    "a judge without a model": (
        ["train", "rejection_sampling", "--reward", "{{judge: http://localhost:1/v1}}"],
        "needs the name of its model",
    ),
    "a batch of one for kto": (
        ["train", "kto", "--per-device-train-batch-size", "1", "--gradient-accumulation-steps", "1"],
        "set per_device_train_batch_size or gradient_accumulation_steps to 2 or more",
    ),
    "no such config": (["train", "--config", "{w}/run.yaml"], "run.yaml does not exist"),
    "a field in the place of a section": (
        ["train", "--config", "{w}/field.yaml"],
        "field.yaml has no setting 'lerning_rate'. Did you mean 'learning_rate' in section 'args'?",
    ),
    "a misspelt section of a file": (
        ["train", "--config", "{w}/section.yaml"],
        "section.yaml has no setting 'adaptr'. Did you mean 'adapter'?",
    ),
    "a training argument of a check": (
        ["check", "{w}/pairs.json", "--model", "{w}/model", "--learning-rate", "1"],
        "there is no option --learning-rate.",
    ),
    "a check that loses too much": (
        ["check", "{w}/pairs.json", "--model", "{w}/model", "--max-length", "2"],
        "nothing is left to train on",
    ),
    "a check of too few rows for the loss": (
        ["check", "{w}/labelled.json", "--model", "{w}/model", "--algorithm", "kto"],
        "share one prompt",
    ),
    "a check of too few rows for a batch": (
        ["check", "{w}/one.json", "--model", "{w}/model", "--algorithm", "aot_paired"],
        "the dataset has 1 rows",
    ),
    "a check of a run without its reward": (
        ["check", "{w}/pairs.json", "--config", "{w}/online.yaml"],
        "rloo needs a reward",
    ),
    "a split that is not there": (
        ["check", "{w}/pairs.json", "--model", "{w}/model", "--eval-data", "{w}/splits", "--eval-split", "tst"],
        "no split 'tst'; set data.eval_split to one of 'train', 'test'",
    ),
    "a check of nothing": (["check", "--model", "{w}/model"], "check what? Give a path or hub id"),
    "a misspelt data setting of a check": (
        ["check", "{w}/pairs.json", "--model", "{w}/model", "--set", "data.max_lenght=9"],
        "data has no setting 'max_lenght'. Did you mean 'max_length'?",
    ),
    "sampling from no model": (
        ["generate", "--model", "{w}/nothing", "--prompt", "a"],
        "nothing' was found: there is no such folder",
    ),
    "explain something unknown": (["explain", "simpoo"], "Did you mean 'simpo'"),
    "a cache for what is sampled anew": (
        ["train", "online_dpo", "--reward", "{w}/reward.py:short", "--reference-cache", "{w}/cache"],
        "online_dpo samples new completions, which no cache knows: leave reference_cache= out.",
    ),
    "a cache without a reference": (
        ["train", "orpo", "--reference-cache", "{w}/cache"],
        "orpo uses no reference model: leave reference_cache= out.",
    ),
    "a cache for more than log-probs": (
        ["train", "tdpo1", "--reference-cache", "{w}/cache"],
        "a cache has one log-prob of it: leave reference_cache= out.",
    ),
    "a cache that is a file": (
        ["train", "dpo", "--reference-cache", "{w}/pairs.json"],
        "pairs.json' is a file: name a folder for the reference's log-probs.",
    ),
    "a plan of an unknown algorithm": (["plan", "dpoo", "--model", "{w}/model"], "no algorithm 'dpoo'. Did you mean"),
    "a plan of no model": (
        ["plan", "dpo", "--model", "{w}/nothing"],
        "nothing' does not exist: there is no such folder.",
    ),
    "a plan for no data": (
        ["plan", "dpo", "--model", "{w}/model", "--data", "{w}/nothing.json"],
        "nothing.json does not exist",
    ),
    "a plan with a cache that could not be": (
        ["plan", "orpo", "--model", "{w}/model", "--reference-cache", "{w}/cache"],
        "orpo uses no reference model: leave reference_cache= out.",
    ),
    "a plan of no file": (["plan", "{w}/run.yaml"], "run.yaml does not exist"),
    "a plan of a pipeline with flags": (
        ["plan", "{w}/stages.yaml", "--beta", "0.2"],
        "stages.yaml is a pipeline: say --set STAGE.section.key=value in place of --beta.",
    ),
    "a plan of a pipeline with a stage that cannot be": (
        ["plan", "{w}/stages.yaml", "--set", "second.reference_cache={w}/cache"],
        "stage second: orpo uses no reference model: leave reference_cache= out.",
    ),
    "a dataset is missed before weights are": (
        ["train", "dpo", "--model", "{w}/weightless", "--data", "{w}/missing.json"],
        "missing.json does not exist",
    ),
    "a misspelt flag of the run": (
        ["train", "dpo", "--reference-cach", "{w}/cache"],
        "there is no option --reference-cach. Did you mean 'reference-cache'?",
    ),
    "export of no adapter": (["export", "{w}/model", "--out", "{w}/merged"], "holds no adapter"),
}


def complete(arguments: list[str], world: Path) -> list[str]:
    """Add what a case leaves out, so that what it is about is the only thing wrong."""
    arguments = [a.format(w=world) for a in arguments]
    if arguments[0] != "train":
        return arguments
    for flag, value in {"--model": "model", "--data": "pairs.json", "--out": "out"}.items():
        if flag not in arguments:
            arguments += [flag, str(world / value)]
    return [*arguments, "--use-cpu", "true", "--save-strategy", "no"]


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_no_traceback(
    case: str, world: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, expected = CASES[case]
    monkeypatch.setattr(sys, "argv", ["prefopt", *complete(arguments, world)])
    with pytest.raises(SystemExit) as ended:
        main()
    error = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert ended.value.code == 2
    assert len(error) == 1, error
    assert expected in error[0]


def test_a_real_process_ends_with_status_2(world: Path) -> None:
    """Without the run-time type checks of the tests."""
    command = [sys.executable, "-m", "prefopt", "train", "dpo", "--beta", "high", "--model", "model", "--out", "out"]
    done = subprocess.run([*command, "--data", "pairs.json"], capture_output=True, text=True, cwd=world)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "prefopt: error: dpo: beta='high' must be a finite number."
    assert "Traceback" not in done.stderr


def test_help_and_import_do_not_wait_for_torch() -> None:
    code = "import sys, prefopt; import prefopt.cli.app; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_told_of_algorithms_does_not_wait_for_transformers() -> None:
    code = "import sys, prefopt; prefopt.algorithms(), prefopt.explain('ppo'), prefopt.get_algorithm('online_dpo'); "
    code += "assert not {'transformers', 'peft'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
