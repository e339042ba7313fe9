"""The commands that a first user types, on the tiny model."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

import prefopt.training.run
from prefopt.cli import main
from prefopt.cli.talk import Talker
from prefopt.scoring import why_not_shared
from prefopt.training.run import make_trainer


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["prefopt", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.save(tmp_path / "model")
    (tmp_path / "pairs.json").write_text(json.dumps(tiny.pairs(6)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


QUICK = ("--use-cpu", "true", "--save-strategy", "no", "--max-steps", "2", "--gradient-accumulation-steps", "1")


def test_train_then_generate_chat_and_export(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run(
        monkeypatch,
        "train",
        "dpo",
        "--model",
        "model",
        "--data",
        "pairs.json",
        "--eval-data",
        "pairs.json",
        "--out",
        "out",
        "--adapter",
        "lora",
        "--beta",
        "0.2",
        "--learning-rate",
        "1e-2",
        *QUICK,
    )
    record = json.loads((world / "out" / "prefopt.json").read_text())
    assert record["hyperparameters"] == {"beta": 0.2}
    assert record["arguments"]["learning_rate"] == 1e-2
    said = capsys.readouterr().err
    assert "6 read, 6 kept" in said
    assert "eval_loss=" in said

    for model in ("model", "out"):
        run(monkeypatch, "generate", "--model", model, "--prompt", "a b c", "--n", 2, "--max-new-tokens", 5)
        assert len(capsys.readouterr().out.splitlines()) == 2
        monkeypatch.setattr(sys, "stdin", io.StringIO("a b\n/new\nc d\n\n"))
        run(monkeypatch, "chat", "--model", model, "--max-new-tokens", 5, "--system", "good")
        assert len(capsys.readouterr().out.splitlines()) == 2

    run(monkeypatch, "export", "out", "--out", "merged", "--dtype", "float32")
    said = capsys.readouterr().out
    assert "merged against trained" in said
    assert float(said.split("largest ")[1].split()[0]) < 1e-4
    run(monkeypatch, "generate", "--model", "merged", "--prompt", "a b c", "--max-new-tokens", 5)


def test_a_config_file_and_flags_that_win_over_it(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (world / "run.yaml").write_text(
        "algorithm: dpo\nmodel: model\ndata: {train: pairs.json, max_length: 60}\nout: out\n"
        "hyperparameters: {beta: 0.3}\nadapter: lora\nlora: {r: 4}\n"
        "args: {learning_rate: 5e-3, max_steps: 2, use_cpu: true, save_strategy: 'no'}\n"
    )
    run(monkeypatch, "train", "--config", "run.yaml", "--beta", "0.4", "--set", "args.max_steps=1")
    record = json.loads((world / "out" / "prefopt.json").read_text())
    assert record["hyperparameters"] == {"beta": 0.4}
    assert record["step"] == 1
    assert record["arguments"]["learning_rate"] == 5e-3
    assert json.loads((world / "out" / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize("place", ["flags", "file"])
def test_a_reference_cache_and_prompts_that_are_not_shared(
    place: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    trainers = []
    monkeypatch.setattr(
        prefopt.training.run, "make_trainer", lambda config: trainers.append(make_trainer(config)) or trainers[-1]
    )
    told = ["--model", "model", "--data", "pairs.json", "--out", "out", *QUICK]
    if place == "file":
        (world / "run.yaml").write_text("algorithm: dpo\nreference_cache: kept\nshare_prompts: false\n")
        told += ["--config", "run.yaml"]
    else:
        told = ["dpo", *told, "--reference-cache", "kept", "--no-share-prompts"]
    run(monkeypatch, "train", *told)
    assert "12 rows" in capsys.readouterr().err
    assert len(list((world / "kept").iterdir())) == 1
    run(monkeypatch, "train", *[word if word != "out" else "again" for word in told], "--share-prompts")
    assert "log-probs of 12 rows read from kept/" in capsys.readouterr().err
    assert [why_not_shared(one.model) for one in trainers] == ["it was switched off", ""]
    shared, padded = (one.state.log_history[-1]["train_loss"] for one in trainers)
    assert shared == pytest.approx(padded, rel=1e-4)


def test_a_swap_of_algorithm_is_a_change_of_one_word(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ipo", "kto", "orpo", "simpo", "sft"):
        run(monkeypatch, "train", name, "--model", "model", "--data", "pairs.json", "--out", name, *QUICK)
        assert (world / name / "model.safetensors").is_file()


def test_rejection_sampling_takes_a_python_reward(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (world / "reward.py").write_text(
        "def good(prompts, completions):\n    return [float(c.split().count('good')) for c in completions]\n"
    )
    run(
        monkeypatch,
        "train",
        "rejection_sampling",
        "--model",
        "model",
        "--data",
        "pairs.json",
        "--out",
        "out",
        "--reward",
        "reward.py:good",
        "--n",
        "3",
        "--max-new-tokens",
        "6",
        "--adapter",
        "lora",
        *QUICK,
    )
    assert "3 completions" not in capsys.readouterr().err
    assert json.loads((world / "out" / "prefopt.json").read_text())["algorithm"] == "rejection_sampling"


def test_algorithms_explain_and_check(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run(monkeypatch, "algorithms")
    listed = capsys.readouterr().out
    for name in ("sft", "dpo", "ipo", "kto", "orpo", "simpo", "rejection_sampling"):
        assert f"\n{name} " in listed
    run(monkeypatch, "explain", "kto")
    text = capsys.readouterr().out
    assert "2402.01306" in text
    assert "desirable_weight = 1.0 (≥ 0)" in text
    assert "evidence   authors' code" in text
    run(monkeypatch, "check", "pairs.json", "--model", "model", "--algorithm", "dpo")
    assert "6 read, 6 kept" in capsys.readouterr().out


def test_a_launcher_trains_on_two_processes(world: Path) -> None:
    """The launcher fails when one of its processes does, in its work or at its end."""
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    command = "-m prefopt train dpo --model model --data pairs.json --out out"
    launched = [*launcher.split(), "--dynamo_backend", "no", "--main_process_port", "0", *command.split(), *QUICK]
    done = subprocess.run([sys.executable, *launched], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("saved to out") == 1
    assert json.loads((world / "out" / "prefopt.json").read_text())["arguments"]["max_steps"] == 2


def test_answers_come_from_weights_in_half_where_the_card_has_it(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of 8 billion weights in float32 fits no consumer card."""
    monkeypatch.setattr("prefopt.models.load.compute_dtype", lambda: torch.bfloat16)
    assert Talker(str(world / "model"), seed=0).model.dtype == torch.bfloat16
