"""Two processes sample apart and learn together."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_distributed import LAUNCH

SCRIPT = Path(__file__).parent / "distributed_online_run.py"
NAMES = ("grpo", "ppo-adapter", "ppo-head")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    done = subprocess.run([sys.executable, *LAUNCH, str(SCRIPT), str(out)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture
def ranks(folder: Path) -> list[dict]:
    found = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["ranks"] for one in found] == [2, 2]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_both_end_with_the_same_weights_and_numbers(ranks: list[dict], name: str) -> None:
    one, two = (rank[name] for rank in ranks)
    assert one["weights"] == two["weights"]
    assert one["evaluation"] == two["evaluation"]
    assert all(np.isfinite(value) for value in one["weights"].values())


@pytest.mark.parametrize("name", NAMES)
def test_they_sample_other_completions_of_other_prompts(ranks: list[dict], name: str) -> None:
    one, two = (rank[name] for rank in ranks)
    assert not {tuple(ids) for ids in one["prompts"]} & {tuple(ids) for ids in two["prompts"]}
    assert one["first"] != two["first"]
    # The reward that is logged is that of both.
    assert one["reward"][0] == pytest.approx(np.mean([*one["rewards"], *two["rewards"]]), rel=1e-6)


@pytest.mark.parametrize("name", ["ppo-adapter", "ppo-head"])
def test_advantages_are_whitened_over_both(ranks: list[dict], name: str) -> None:
    parts = [np.array(rank[name]["advantages"]) for rank in ranks]
    together = np.concatenate(parts)
    assert together.mean() == pytest.approx(0, abs=1e-6)
    assert together.std() == pytest.approx(1, abs=1e-5)
    assert all(abs(part.mean()) > 1e-3 for part in parts)


@pytest.mark.parametrize("name", NAMES)
def test_each_goes_on_with_its_own_rollout(folder: Path, ranks: list[dict], name: str) -> None:
    checkpoint = folder / name / "checkpoint-3"
    for rank in (0, 1):
        assert (checkpoint / f"rollout-{rank}.json").is_file()
        assert (checkpoint / f"rollout-{rank}.safetensors").is_file()
    for rank in ranks:
        assert rank[name]["resumed"] == rank[name]["weights"]


def test_both_stop_where_the_rewards_of_one_distinguish_nothing(ranks: list[dict]) -> None:
    assert all("distinguish no completions" in rank["refusal"] for rank in ranks)
