"""The study of over-optimization, in a toy lab."""

import json
from pathlib import Path

import pytest
from toy_lab import toy_lab

from prefopt.lab import demo
from prefopt.lab.overoptimization import Point, Study, curves_chart, describe, page, study, write
from prefopt.lab.quiet import quiet

BUDGET = demo.Budget(steps=2, completions=8, n=2, prompts=6, k=2, pairs=8, max_new_tokens=6, seeds=(0, 1))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("toy")
    rates = {"ppo": 1e-2, "online_dpo": 1e-2, "reward": 1e-2}
    options = {"algorithms": ("ppo", "online_dpo"), "weak_pairs": 8, "free_steps": 4, "every": 2, "tracked": 4}
    with quiet():
        return study(toy_lab(folder / "lab"), folder / "out", budget=BUDGET, rates=rates, **options)


def test_curves_begin_at_the_start_and_go_on_by_steps(found: Study) -> None:
    assert [point.step for point in found.careful["ppo"]] == [0, 2]
    assert [point.step for point in found.free["ppo"]] == [0, 2, 4]
    first = found.free["ppo"][0]
    assert first.kl == pytest.approx(0.0, abs=1e-5)
    assert found.free["online_dpo"][0] == first
    assert found.free["ppo"][-1].kl > 0


def test_every_algorithm_has_a_result_over_the_seeds(found: Study) -> None:
    assert [result.name for result in found.results] == ["ppo", "online_dpo"]
    assert all(result.seeds == 2 and result.reward.seed_low is not None for result in found.results)


def test_the_report_is_written_whole(found: Study, tmp_path: Path) -> None:
    path = write(found, tmp_path)
    text = path.read_text()
    assert text.count("<svg") == 2
    assert "http" not in text.replace("http://www.w3.org", "")
    read = json.loads((tmp_path / "overoptimization.json").read_text())
    assert read["free"]["ppo"][-1]["step"] == 4


def test_the_words_say_who_turned_down(found: Study) -> None:
    up = [Point(0, 0.0, 0.0, 0.4), Point(5, 1.0, 1.0, 0.6), Point(10, 2.0, 2.0, 0.7)]
    down = [*up[:2], Point(10, 4.0, 2.0, 0.3)]
    told = describe(Study(found.start, found.results, found.careful, {"ppo": up, "grpo": down}, {}))
    assert "turns down for grpo." in told
    assert "no gold reward turned down" in describe(Study(found.start, found.results, found.careful, {"ppo": up}, {}))
    assert "grpo" in page(Study(found.start, found.results, found.careful, {"grpo": down}, {}))
    assert len(curves_chart({"ppo": up, "grpo": down}, found.start.reward).axes) == 2
