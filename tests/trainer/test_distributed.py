"""Two processes train what one trains."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "distributed_run.py"
# accelerate's launcher starts several processes on one CPU machine only under this flag (`--cpu` alone wants MPI);
# the processes themselves ask for the CPU.
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def run(out: Path, *launcher: str) -> dict:
    done = subprocess.run([sys.executable, *launcher, str(SCRIPT), str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    one = run(tmp_path / "one.json")
    two = run(tmp_path / "two.json", *LAUNCH)
    assert (one["ranks"], two["ranks"]) == (1, 2)
    for name, alone in one["results"].items():
        together = two["results"][name]
        assert len(alone["losses"]) == len(together["losses"]) >= 4
        assert together["losses"] == pytest.approx(alone["losses"], rel=1e-6)
        for part in ("evaluation", "log"):
            assert together[part].keys() == alone[part].keys()
            for key, value in alone[part].items():
                if key != "epoch":  # counted in micro-batches of a rank
                    assert together[part][key] == pytest.approx(value, rel=1e-5, abs=1e-7), (name, part, key)
