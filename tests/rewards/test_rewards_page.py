"""The page on rewards is executed, and its YAML is read."""

import re
import sys
import types
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefopt.rewards.penalties import BUILT_IN
from prefopt.rewards.reward import make_reward
from prefopt.training.run_file import parse_rewards, read_run

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the page speaks of; reward models are only named."""
    (tmp_path / "rewards.py").write_text("def polite(prompts, completions):\n    return [0.0] * len(completions)\n")
    for name in ("reward-model", "rm-0", "rm-1", "rm-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("prefopt.rewards.reward_model")
    module.RewardModel = types.SimpleNamespace(load=lambda name, **_: lambda prompts, completions: [0.0])
    monkeypatch.setitem(sys.modules, "prefopt.rewards.reward_model", module)


def test_python_blocks_run() -> None:
    namespace: dict[str, Any] = {}
    for number, block in enumerate(blocks("python")):
        exec(compile(block, f"rewards.md, python block {number + 1}", "exec"), namespace)
    assert len(blocks("python")) == 6
    assert namespace["judge"].api_key_env == "OPENAI_API_KEY"


def test_yaml_blocks_are_rewards(world: None) -> None:
    run = {"algorithm": "rejection_sampling", "model": "m", "out": "o"}
    made = [make_reward(read_run(run | yaml.safe_load(block)).reward) for block in blocks("yaml")]
    names = [{name: weight for name, (_, weight) in reward.functions.items()} for reward in made]
    assert names == [
        {"polite": 1.0, "length_penalty": 0.5},
        {"reward-model": 1.0, "missing_eos_penalty": 0.1},
        {"ensemble": 1.0},
        {"judge": 1.0},
    ]


def test_flags_are_rewards(world: None) -> None:
    texts = [plain or quoted for quoted, plain in re.findall(r'--reward (?:"([^"]+)"|(\S+:\S+))', PAGE)]
    assert list(make_reward(parse_rewards(texts)).functions) == ["polite", "length_penalty"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_table_has_every_built_in_with_its_defaults(name: str) -> None:
    row = re.search(rf"^\| `{name}` \|.*$", PAGE, flags=re.MULTILINE)
    assert row
    for field in fields(BUILT_IN[name]):
        shown = f"`{field.name}={field.default}`" if field.default != "" else f"`{field.name}`"
        assert shown in row[0]
