"""A signal ends a run with a checkpoint, and the same command goes on from there."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from helpers import trainer
from transformers import TrainerCallback

from prefopt.core.errors import Interrupted, UsageError
from prefopt.training import run as module
from prefopt.training.manifest import newest_whole
from prefopt.training.spec import RunFile
from prefopt.training.stopping import StopOnSignal


class Signal(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def run_of(tmp_path: Path) -> RunFile:
    return RunFile(model="-", algorithm="dpo", train_dataset="-", out=str(tmp_path / "out"))


def patched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *callbacks: TrainerCallback) -> None:
    folder = str(tmp_path / "out" / "checkpoints")
    args = {"output_dir": folder, "max_steps": 4, "save_strategy": "steps", "save_steps": 100}
    made = lambda _: trainer("dpo", tiny.pairs(8), args=args, callbacks=[*callbacks])  # noqa: E731
    monkeypatch.setattr(module, "make_trainer", made)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_and_the_run_goes_on(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(number)
    patched(monkeypatch, tmp_path, Signal(1, number))
    with pytest.raises(Interrupted, match=f"stopped by {number.name} after step 2.*--resume") as stopped:
        module.train(run_of(tmp_path))
    assert stopped.value.signal == number
    assert signal.getsignal(number) is handler
    folder, flawed = newest_whole(tmp_path / "out" / "checkpoints")
    assert folder.name == "checkpoint-2" and not flawed
    assert not (tmp_path / "out" / "prefopt.json").exists()
    patched(monkeypatch, tmp_path)
    module.train(run_of(tmp_path), resume=True)
    with pytest.raises(UsageError, match="holds the result of a finished run"):
        module.train(run_of(tmp_path))


def test_a_second_signal_ends_it_at_once() -> None:
    code = (
        "import os, signal; from prefopt.training.stopping import StopOnSignal\n"
        "with StopOnSignal().listening():\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('saving', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('never')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "saving\n")


def test_without_a_signal_nothing_stops() -> None:
    assert StopOnSignal().signal == 0
