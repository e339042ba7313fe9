"""The report on a policy: numbers by hand, what it warns of, and the command that makes it."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from prefopt.cli import main
from prefopt.evaluation import Scored, compare
from prefopt.evaluation.policy_page import page, written
from prefopt.evaluation.samples import Samples, log_ratios
from prefopt.models import load_trained
from prefopt.rollouts import Sample


def scored(rewards: list[list[float]], *, length: int = 5, ended: bool = True, same: bool = False) -> Scored:
    ids = np.full(length, 9, dtype=np.int32) if same else np.arange(9, 9 + length, dtype=np.int32)
    values = np.array(rewards)
    groups = [[Sample(ids, "said", ended)] * values.shape[1] for _ in values]
    prompt = np.array([1, 8], dtype=np.int32)
    return Scored(Samples(["asked"] * len(values), [prompt] * len(values), groups, values), {"only": values})


def test_the_numbers_are_those_of_the_prompts() -> None:
    policy, start = scored([[1.0, 3.0], [4.0, 4.0]]), scored([[1.0, 1.0], [5.0, 3.0]])
    report = compare(policy, start, np.array([[0.5, 0.7], [0.2, -0.2]]))
    assert (report.prompts, report.n) == (2, 2)
    # Means 2 and 4: 3 ± t(1) · sd / √2 = 3 ± 12.706 · √2 / √2.
    reward = report.policy["reward"]
    assert (reward.mean, reward.low, reward.high) == (3.0, pytest.approx(3 - 12.7062), pytest.approx(3 + 12.7062))
    # Gains 1 and 0; wins (½ + ½ + 1 + 1) / 4 and (0 + 1 + 0 + 1) / 4.
    assert (report.gain.mean, report.win_rate.mean) == (0.5, pytest.approx((0.75 + 0.5) / 2))
    assert report.kl.mean == pytest.approx(0.3)
    assert set(report.policy) == {"reward", "length", "ended", "repetition"}
    # The t-interval of two prompts would reach far beyond what a share can be.
    assert (report.win_rate.low, report.win_rate.high) == (0.0, 1.0)
    assert (report.policy["length"].mean, report.policy["ended"].mean, report.policy["repetition"].mean) == (5, 1, 0)


def test_it_warns_where_a_reward_rose_by_cheating_and_only_there() -> None:
    low, high = [[0.0, 0.1]] * 3, [[1.0, 1.1]] * 3
    assert compare(scored(high), scored(low), None).warnings == ()
    for words, cheat in {
        "from 5 to 10 tokens": scored(high, length=10),
        "repeated trigrams went from 0% to 67%": scored(high, same=True),
        "end by themselves went from 100% to 0%": scored(high, ended=False),
    }.items():
        (line,) = compare(cheat, scored(low), None).warnings
        assert words in line
        # What did not pay is no cheating.
        assert "rose" not in " ".join(compare(Scored(cheat.samples, {}), scored([[2.0, 2.1]] * 3), None).warnings)
    (line,) = compare(scored([[0.0], [1.0], [0.2]]), scored([[0.1], [0.8], [0.3]]), None).warnings
    assert "cannot be told from none" in line


def test_log_ratios_are_taken_at_the_temperature_of_the_sampling() -> None:
    policy, start = tiny.model(0), tiny.model(1)
    ids = np.array([10, 11, 2], dtype=np.int32)
    samples = Samples(["a"], [np.array([1, 7], dtype=np.int32)], [[Sample(ids, "d e", True)]], np.zeros((1, 1)))
    with torch.no_grad():
        logits = [model(torch.tensor([[1, 7, 10, 11]])).logits[0, 1:].double() / 0.5 for model in (policy, start)]
    by_hand = [each.log_softmax(-1)[torch.arange(3), torch.tensor(ids).long()].sum().item() for each in logits]
    assert log_ratios(policy, start, samples, 0, 0.5).item() == pytest.approx(by_hand[0] - by_hand[1], rel=1e-5)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.save(tmp_path / "start")
    tiny.save(tmp_path / "policy", seed=1)
    (tmp_path / "prompts.json").write_text(json.dumps([{"prompt": r["prompt"], "bonus": 1} for r in tiny.pairs(6)]))
    (tmp_path / "reward.py").write_text(
        "def short(prompts, completions, bonus, ended):\n"
        "    return [b - len(c.split()) / 8 + e for c, b, e in zip(completions, bonus, ended, strict=True)]\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prefopt", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


QUICK = ("--data", "prompts.json", "--n", "3", "--max-new-tokens", "6")


def test_evaluate_a_policy_against_its_start(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = ("--reward", "reward.py:short", "--reward", "0.5*length_penalty(limit=2)")
    for out in ("one", "two"):
        assert run(monkeypatch, "evaluate", "policy", *QUICK, *rewards, "--against", "start", "--out", out) == 0
    numbers = json.loads((world / "one" / "report.json").read_text())
    rows = [json.loads(line) for line in (world / "one" / "completions.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 6 * 3
    own = [row for row in rows if row["model"] == "policy"]
    assert numbers["policy"]["reward"]["mean"] == pytest.approx(np.mean([row["reward"] for row in own]))
    assert numbers["policy"]["length"]["mean"] == pytest.approx(np.mean([row["tokens"] for row in own]))
    for row in rows:
        assert row["reward"] == pytest.approx(row["reward/short"] + 0.5 * row["reward/length_penalty"])
        assert row["reward/short"] == pytest.approx(1 - len(row["completion"].split()) / 8 + row["ended"])
    assert numbers["kl"]["mean"] > 1
    assert numbers["start"]["reward"]["mean"] + numbers["gain"]["mean"] == pytest.approx(
        numbers["policy"]["reward"]["mean"]
    )
    assert (world / "two" / "report.json").read_text() == (world / "one" / "report.json").read_text()
    page = (world / "one" / "report.html").read_text()
    assert f"<b>{numbers['policy']['reward']['mean']:.3f}</b>" in page
    assert f"{numbers['win_rate']['mean']:.1%}" in page


def test_both_models_are_in_half_where_the_card_computes_so(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def load(*given: Any, **options: Any) -> torch.nn.Module:
        found.append(load_trained(*given, **options))
        return found[-1]

    monkeypatch.setattr("prefopt.models.load.compute_dtype", lambda: torch.bfloat16)
    monkeypatch.setattr("prefopt.evaluation.run.load_trained", load)
    given = ("--reward", "reward.py:short", "--against", "start", "--out", "out")
    assert run(monkeypatch, "evaluate", "policy", *QUICK, *given) == 0
    assert [model.dtype for model in found] == 2 * [torch.bfloat16]
    assert json.loads((world / "out" / "report.json").read_text())["kl"]["mean"] > 1


def test_a_policy_against_itself_is_no_better_and_no_further(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("--reward", "reward.py:short", "--against", "policy", "--out", "out")
    assert run(monkeypatch, "evaluate", "policy", *QUICK, *given) == 0
    numbers = json.loads((world / "out" / "report.json").read_text())
    assert numbers["kl"]["mean"] == pytest.approx(0, abs=1e-6)
    # Other samples of the same law, not the same samples.
    assert numbers["gain"]["mean"] != 0
    assert numbers["win_rate"]["low"] < 0.5 < numbers["win_rate"]["high"]


def test_no_divergence_where_the_sampling_is_not_from_the_whole_distribution(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = ("--data", "prompts.json", "--n", "1", "--max-new-tokens", "4", "--temperature", "0")
    given = ("--reward", "reward.py:short", "--against", "start", "--out", "out")
    assert run(monkeypatch, "evaluate", "policy", *greedy, *given) == 0
    assert json.loads((world / "out" / "report.json").read_text())["kl"] is None


def test_a_policy_without_a_start_has_no_comparison(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "evaluate", "policy", *QUICK, "--reward", "reward.py:short", "--out", "out") == 0
    numbers = json.loads((world / "out" / "report.json").read_text())
    assert (numbers["start"], numbers["gain"], numbers["win_rate"], numbers["kl"]) == (None, None, None, None)
    assert "reward/short" not in numbers["policy"]


def test_the_page_shows_who_gained_and_who_lost_and_the_text_as_text() -> None:
    policy, start = scored([[1.0, 3.0], [4.0, 4.0], [-1e-9, 0.0]]), scored([[1.0, 1.0], [5.0, 5.0], [0.0, 0.0]])
    for number, group in enumerate(policy.samples.groups):
        group[:] = [dataclasses.replace(each, text=f"<i>{number}</i>") for each in group]
    html = page(compare(policy, start, None), policy, start, {"model": "<mine>"})
    places = [html.index(f"&lt;i&gt;{number}&lt;/i&gt;") for number in (0, 1)]
    assert places == sorted(places)
    # Two prompts are the extremes of three; the one between them is not shown.
    assert "&lt;i&gt;2" not in html
    words = " ".join(html.split())
    assert (
        "The prompt with the highest gain in mean reward, then the one with the lowest. Each shows the first of 2"
        in words
    )
    # What they are ordered by is shown: gains of 1 and −1.
    shown = re.findall(r"Gain in mean reward: (\S+)</p>", html)
    assert shown == ["+1.000", "-1.000"]
    assert "<dd>&lt;mine&gt;</dd>" in html
    assert "<i>" not in html


def test_a_number_that_rounds_to_zero_has_no_minus() -> None:
    assert written("kl", -1e-9) == "0.000"
    assert written("gain", -1e-9, signed=True) == "+0.000"
    assert written("gain", -0.25, signed=True) == "-0.250"
    assert written("length", 4.26) == "4.3"
    assert written("ended", 0.125) == "12.5%"
