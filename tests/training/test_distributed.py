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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one(folder: Path) -> dict:
    return run(folder / "one.json")


@pytest.fixture(scope="module")
def two(folder: Path) -> dict:
    return run(folder / "two.json", *LAUNCH)


def test_two_processes_give_the_losses_of_one(one: dict, two: dict) -> None:
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


def test_two_processes_fill_a_reference_cache_together(one: dict, two: dict, folder: Path) -> None:
    plain, made, read = (two["results"][name] for name in ("kto", "kto, cache made", "kto, cache read"))
    for cached in (made, read):
        assert cached["losses"] == pytest.approx(plain["losses"], rel=1e-6)
        assert cached["evaluation"]["eval_loss"] == pytest.approx(plain["evaluation"]["eval_loss"], rel=1e-6)
    # Each scores its share, every row once; and both compare when they read.
    alone = one["results"]["kto, cache made"]["scored"]
    assert min(made["scored"]) > 0 and [sum(made["scored"])] == alone
    assert read["scored"] == 2 * one["results"]["kto, cache read"]["scored"]
    # Completions and mismatched ones, for training and evaluation; nothing unfinished, and the same names.
    files = [sorted(path.name for path in (folder / f"{name}.cache").iterdir()) for name in ("one", "two")]
    assert files[0] == files[1] and len(files[0]) == 4
