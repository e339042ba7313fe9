"""Two processes train what one trains; online they sample apart and learn together."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import distributed_online_run
import distributed_run
import numpy as np
import pytest

from prefopt.scoring import tiles
from prefopt.scoring.scorer import Scorer
from prefopt.training import reference_cache

SCRIPT = Path(__file__).parent / "distributed_runs.py"
NAMES = ("grpo", "ppo-adapter", "ppo-head", "online_dpo")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote. A launcher gives them these variables; test_commands.py starts one."""
    out = tmp_path_factory.mktemp("runs")
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    environments = [os.environ | group | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    command, files = [sys.executable, str(SCRIPT), str(out)], [out / f"stderr-{rank}" for rank in (0, 1)]
    processes = []
    for environment, file in zip(environments, files, strict=True):
        with file.open("w") as errors:
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors))
    try:
        # One that fails leaves the other waiting for it.
        while None in [process.poll() for process in processes] and not any(one.poll() for one in processes):
            time.sleep(0.1)
        codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join(file.read_text()[-3000:] for file in files)
    return out


@pytest.fixture(scope="module")
def one(folder: Path) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        # It changes these, which other tests want as they were.
        for place, name in ((Scorer, "score_reference"), (reference_cache, "TOKENS"), (tiles, "TILE")):
            patch.setattr(place, name, getattr(place, name))
        distributed_run.main(folder / "one.json")
    return json.loads((folder / "one.json").read_text())


@pytest.fixture(scope="module")
def two(folder: Path) -> dict:
    return json.loads((folder / "two.json").read_text())


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


# ---- online ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ranks(folder: Path) -> list[dict]:
    found = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["ranks"] for one in found] == [2, 2]
    return found


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict:
    out = folder / "alone"
    out.mkdir()
    distributed_online_run.main(out)
    return json.loads((out / "rank-0.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_both_end_with_the_same_weights_and_numbers(ranks: list[dict], name: str) -> None:
    one, two = (rank[name] for rank in ranks)
    assert one["weights"] == two["weights"]
    assert one["evaluation"] == two["evaluation"]
    assert all(np.isfinite(value) for value in one["weights"].values())


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_are_one(ranks: list[dict], alone: dict, name: str) -> None:
    """The same completions, and every number of every step."""
    one, two = alone[name], ranks[0][name]
    assert two["examples"] == one["examples"]
    for key, values in one["steps"].items():
        assert two["steps"][key] == pytest.approx(values, rel=1e-6, abs=1e-8), key
    assert two["evaluation"] == pytest.approx(one["evaluation"], rel=1e-6, abs=1e-7)
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_they_sample_for_other_prompts(ranks: list[dict], name: str) -> None:
    one, two = (rank[name] for rank in ranks)
    assert not {tuple(ids) for ids in one["prompts"]} & {tuple(ids) for ids in two["prompts"]}
    assert one["examples"] == two["examples"]
    # The reward that is logged is that of both.
    assert one["steps"]["reward"][0] == pytest.approx(np.mean([*one["rewards"], *two["rewards"]]), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_both_go_on_with_the_rollout_of_the_checkpoint(folder: Path, ranks: list[dict], name: str) -> None:
    checkpoint = folder / name / "checkpoint-3"
    assert (checkpoint / "rollout.json").is_file()
    assert (checkpoint / "rollout.safetensors").is_file()
    for rank in ranks:
        assert rank[name]["resumed"] == rank[name]["weights"]


def test_both_stop_where_the_rewards_distinguish_too_little(ranks: list[dict]) -> None:
    assert all("distinguish no completions" in rank["refusal"] for rank in ranks)
