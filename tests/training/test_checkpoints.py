"""Checkpoints are whole or not there, and a run resumes from the newest whole one of its own."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from helpers import losses, trainer
from transformers import TrainerCallback

import prefopt
from prefopt import UsageError
from prefopt.training import checkpoint as module
from prefopt.training.manifest import MANIFEST, UNFINISHED, flaw_of, newest_whole, run_of


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step >= self.step:
            control.should_training_stop = True


def make(folder: Path, *, algorithm: str = "dpo", rows: object = None, stop: int = 99, **changes: object):
    options = {key: changes.pop(key) for key in ("adapter", "lora", "model") if key in changes}
    args = {"output_dir": str(folder), "save_strategy": "steps", "save_steps": 2, "max_steps": 5, "logging_steps": 3}
    args |= {"learning_rate": 1e-3, "save_total_limit": 3, **changes}
    return trainer(algorithm, rows or tiny.pairs(12), args=args, callbacks=[StopAt(stop)], **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped after its fourth step."""
    folder = tmp_path_factory.mktemp("written")
    make(folder, stop=4).train()
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "run")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(module, "say", lines.append)
    return lines


def test_a_checkpoint_is_sealed_and_nothing_unfinished_is_left(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    sealed = folder / "checkpoint-4"
    assert flaw_of(sealed) == ""
    files = json.loads((sealed / MANIFEST).read_text())["files"]
    assert set(files) == {path.name for path in sealed.iterdir()} - {MANIFEST}
    run = run_of(sealed)
    assert (run["identity"]["algorithm"], run["step"]) == ("dpo", 4)
    assert run["identity"]["hyperparameter"] == {"beta": 0.1}


@pytest.mark.parametrize("damage", ["missing", "short", "changed", "manifest", "unsealed"])
def test_a_damaged_checkpoint_is_passed_over_for_the_newest_whole_one(
    damage: str, folder: Path, said: list[str]
) -> None:
    file = folder / "checkpoint-4" / "optimizer.pt"
    if damage == "missing":
        file.unlink()
    elif damage == "short":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "changed":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "manifest":
        (file.parent / MANIFEST).write_text("{")
    else:
        (file.parent / MANIFEST).unlink()
    assert newest_whole(folder)[0] == folder / "checkpoint-2"
    run = make(folder)
    run.train(resume_from_checkpoint=True)
    assert run._initial_global_step == 2
    name = "optimizer.pt" if damage in ("missing", "short", "changed") else MANIFEST
    assert any("checkpoint-4 is passed over" in line and name in line for line in said)


def test_a_damaged_checkpoint_that_is_named_is_refused(folder: Path) -> None:
    (folder / "checkpoint-4" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"checkpoint-4 is damaged: model\.safetensors is missing"):
        make(folder).train(resume_from_checkpoint=str(folder / "checkpoint-4"))


def test_a_folder_without_a_whole_checkpoint_is_refused(folder: Path) -> None:
    for name in ("checkpoint-2", "checkpoint-4"):
        (folder / name / "scheduler.pt").unlink()
    with pytest.raises(UsageError, match="none of its checkpoints is whole"):
        make(folder).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"algorithm": "ipo"}, "algorithm='ipo' was 'dpo'"),
        ({"algorithm": prefopt.get_algorithm("dpo", beta=0.2)}, r"hyperparameter beta=0\.2 was 0\.1"),
        ({"adapter": "lora", "lora": {"r": 4}}, "adapter"),
        ({"rows": tiny.pairs(12, seed=5)}, "the training data are others"),
        ({"model": tiny.model(3)}, "the base model is another one"),
        ({"seed": 7}, "seed=7 was 42"),
    ],
    ids=["algorithm", "hyperparameter", "adapter", "data", "base", "seed"],
)
def test_the_checkpoint_of_another_run_is_refused(changes: dict, what: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=f"was written by another run: .*{what}.*resume_anyway=True"):
        make(folder, **changes).train(resume_from_checkpoint=True)


def test_what_is_meant_resumes_anyway(folder: Path) -> None:
    run = make(folder, rows=tiny.pairs(12, seed=5))
    run.train(resume_from_checkpoint=True, resume_anyway=True)
    assert run.state.global_step == 5


def test_other_arguments_are_said(folder: Path, said: list[str]) -> None:
    make(folder, learning_rate=2e-3).train(resume_from_checkpoint=True)
    assert "resuming with other arguments: learning_rate 0.002 (was 0.001)." in said


def test_the_log_goes_on_in_the_middle_of_a_line(folder: Path, tmp_path: Path) -> None:
    # Lines of the log are 3 steps apart and checkpoints 2, so a line spans the checkpoint of step 4.
    whole = make(tmp_path / "whole", max_steps=6)
    whole.train()
    resumed = make(folder, max_steps=6)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)
    assert [row["rewards/margins"] for row in resumed.state.log_history if "rewards/margins" in row] == [
        row["rewards/margins"] for row in whole.state.log_history if "rewards/margins" in row
    ]


def test_a_run_that_is_resumed_at_its_last_step_trains_no_further(tmp_path: Path) -> None:
    done = make(tmp_path, max_steps=4)
    done.train()
    again = make(tmp_path, max_steps=4)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    for (name, one), (_, other) in zip(done.policy.named_parameters(), again.policy.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_fresh_start_keeps_the_checkpoints_of_an_earlier_run_apart(folder: Path, said: list[str]) -> None:
    (folder / UNFINISHED / "checkpoint-6").mkdir(parents=True)
    make(folder, stop=2).train()
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "replaced-1"]
    assert sorted(path.name for path in (folder / "replaced-1").iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert any("checkpoints of an earlier run" in line for line in said)


def test_a_folder_that_cannot_be_written_to_is_found_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = make(tmp_path / "out")
    run.args.output_dir = str(tmp_path / "file" / "below")
    with pytest.raises(UsageError, match=r"checkpoints cannot be written to .*Name another folder"):
        run.train()
    assert run.state.global_step == 0


def test_a_disk_without_room_is_found_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UsageError, match=r"a checkpoint needs about .* GiB"):
        make(tmp_path).train()


def test_a_disk_that_fills_up_is_one_line_and_leaves_whole_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path)
    save = run.source.save

    def fail(folder: Path, **options: object) -> None:
        if run.state.global_step == 4:
            raise OSError(28, "No space left on device")
        save(folder, **options)

    monkeypatch.setattr(run.source, "save", fail)
    with pytest.raises(UsageError, match=r"the checkpoint of step 4 cannot be written.*No space left on device"):
        run.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert flaw_of(tmp_path / "checkpoint-2") == ""
