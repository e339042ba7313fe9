"""The report on a reward model: numbers by hand, what it warns of, and the files and tables that it makes."""

import json
import math
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import tiny

import prefopt
from prefopt.cli import main
from prefopt.core.errors import UsageError
from prefopt.evaluation import ScoredPairs, report_on, write_reward_report
from prefopt.evaluation.reward_page import page, reliability_plot
from prefopt.evaluation.reward_report import reliability, share, thirds


def scored(chosen, rejected, chosen_lengths=None, rejected_lengths=None) -> ScoredPairs:
    n = len(chosen)
    return ScoredPairs(
        np.asarray(chosen, dtype=float),
        np.asarray(rejected, dtype=float),
        np.asarray(chosen_lengths if chosen_lengths is not None else [5] * n),
        np.asarray(rejected_lengths if rejected_lengths is not None else [5] * n),
    )


def test_accuracy_counts_ties_one_half_and_has_wilsons_interval():
    report = report_on(scored([1, 2, 0, 5], [0, 3, 0, 1]))
    assert (report.accuracy.n, report.accuracy.value) == (4, 0.625)
    # Wilson's interval for 8 of 10, from the textbook's formula.
    eight = share("x", np.array([1.0] * 8 + [0.0] * 2))
    assert (eight.low, eight.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    all_right = share("x", np.ones(10))
    assert all_right.high == pytest.approx(1.0)
    assert all_right.low == pytest.approx(0.7225, abs=1e-4)


def test_loss_and_brier_by_hand():
    report = report_on(scored([2.0, -1.0], [0.0, 0.5]))
    p = [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1.5))]
    assert report.loss == pytest.approx(-(math.log(p[0]) + math.log(p[1])) / 2)
    assert report.brier == pytest.approx(((1 - p[0]) ** 2 + (1 - p[1]) ** 2) / 2)
    blank = report_on(scored([3.0] * 4, [3.0] * 4))
    assert (blank.loss, blank.brier, blank.accuracy.value) == (pytest.approx(math.log(2)), 0.25, 0.5)
    assert blank.ece == pytest.approx(0.0)


def test_calibration_error_is_the_gap_between_confidence_and_truth():
    """Sure to 0.9 of everything and right in 6 of 10: off by 0.3, whichever of the two is called chosen."""
    z = math.log(9)
    margins = [z] * 6 + [-z] * 4
    report = report_on(scored(margins, [0.0] * 10))
    assert report.ece == pytest.approx(0.3)
    (only,) = report.bins
    assert (only.confidence, only.right.value, only.right.n) == (pytest.approx(0.9), 0.6, 10)


def test_a_calibrated_model_has_no_calibration_error():
    rng = np.random.default_rng(0)
    margins = rng.normal(size=200_000) * 2
    truth = rng.random(200_000) < 1 / (1 + np.exp(-margins))
    signed = np.where(truth, margins, -margins)
    assert report_on(scored(signed, np.zeros_like(signed))).ece < 0.005
    assert report_on(scored(2 * signed, np.zeros_like(signed))).ece > 0.05


def test_bins_hold_every_pair_once_even_the_surest():
    margins = np.array([0.0, 1e-9, 0.2, 3.0, 800.0, -800.0])
    bins = reliability(margins, (margins > 0).astype(float))
    assert sum(one.right.n for one in bins) == 6
    assert bins[-1].right.name == "0.95 to 1.00"
    assert bins[0].confidence >= 0.5


def test_accuracy_by_length_is_of_the_pairs_of_that_length():
    longer = np.array([-9, -8, -7, 0, 1, 2, 7, 8, 9])
    right = np.array([0, 0, 0, 1, 0, 1, 1, 1, 1.0])
    report = report_on(scored(right, 1 - right, 20 + longer, np.full(9, 20)))
    assert [(one.n, round(one.value, 3)) for one in report.by_length] == [(3, 0.0), (3, 0.667), (3, 1.0)]
    assert [one.name for one in report.by_length] == [
        "chosen shorter (-9 to -7 tokens)",
        "chosen not shorter (+0 to +2 tokens)",
        "chosen longer (+7 to +9 tokens)",
    ]
    assert report.prefers_longer == pytest.approx(7 / 8)
    assert report.longer_is_chosen == pytest.approx(5 / 8)


def test_equal_values_stay_together():
    parts = thirds(np.zeros(7), np.ones(7), lambda part, *_: "abc"[part], ".0f")
    assert [(one.name, one.n) for one in parts] == [("a (0)", 7)]
    assert (
        sum(one.n for one in thirds(np.array([1, 1, 1, 1, 2, 3]), np.ones(6), lambda part, *_: "abc"[part], ".0f")) == 6
    )


def test_a_part_that_holds_equal_lengths_is_not_called_shorter():
    longer = np.array([-5, -3, 0, 0, 0, 0, 0, 2, 4])
    report = report_on(scored(np.ones(9), np.zeros(9), 20 + longer, np.full(9, 20)))
    assert [one.name for one in report.by_length] == [
        "chosen not longer (-5 to +0 tokens)",
        "chosen longer (+2 to +4 tokens)",
    ]


def test_a_model_that_likes_length_more_than_the_data_is_warned_of_at_any_correlation():
    rng = np.random.default_rng(3)
    base, odd = rng.integers(50, 500, size=200), np.arange(200) % 2
    report = report_on(scored(odd, 1 - odd, base + odd, base + 1 - odd))
    assert abs(report.spearman) < 0.3
    assert any("prefers the longer in 100% of pairs, the data in 50%" in line for line in report.warnings)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_score_that_follows_length_is_warned_of(sign):
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 60, size=(2, 100))
    scores = sign * lengths + rng.normal(size=(2, 100))
    report = report_on(scored(*scores, *lengths))
    (line,) = (line for line in report.warnings if "the score follows length" in line)
    assert f"prefers the longer in {report.prefers_longer:.0%}" in line
    assert (report.prefers_longer > 0.9) == (sign > 0)
    noise = report_on(scored(lengths[0] * 0 + rng.normal(size=100) + 3, rng.normal(size=100), *lengths))
    assert noise.warnings == ()


def test_an_accuracy_that_may_be_chance_is_warned_of():
    report = report_on(scored([1, 0, 1, 0, 1.0], [0, 1, 0, 1, 0.0]))
    assert any("cannot tell from guessing" in line for line in report.warnings)


def test_broken_scores_are_refused():
    with pytest.raises(UsageError, match="not finite"):
        report_on(scored([math.nan], [0.0]))


def test_the_files(tmp_path: Path):
    rng = np.random.default_rng(2)
    report = report_on(scored(*rng.normal(size=(2, 60)), *rng.integers(1, 50, size=(2, 60))))
    path = write_reward_report(report, {"model": "<rm>", "data": "d"}, tmp_path / "new")
    numbers = json.loads((tmp_path / "new" / "report.json").read_text())
    assert numbers["accuracy"]["value"] == report.accuracy.value
    assert numbers["facts"]["model"] == "<rm>"
    assert sum(one["right"]["n"] for one in numbers["bins"]) == 60
    html = path.read_text()
    assert "&lt;rm&gt;" in html
    assert f"{report.accuracy.value:.1%}" in html
    assert not any(word in html for word in ("http://", "https://", "<script", "url(", "<link"))


def test_the_plot_shows_every_bin_at_its_place():
    margins = np.linspace(0.1, 4, 40)
    bins = reliability(margins, np.tile([1.0, 1.0, 1.0, 0.0], 10))
    svg = ET.fromstring(reliability_plot(bins))
    dots, counts = svg.findall("circle"), svg.findall("rect")
    assert len(dots) == len(counts) == len(bins)
    _, _, width, height = map(float, svg.get("viewBox").split())
    for one, dot, rect in zip(bins, dots, counts, strict=True):
        x = float(dot.get("cx"))
        left = float(rect.get("x"))
        assert left - 1.5 <= x <= left + float(rect.get("width")) + 1.5
        assert f"{one.right.n} pairs" in dot.find("title").text
        assert 0 < x < width
        assert 0 < float(dot.get("cy")) < height
    # Higher is more often right.
    order = sorted(zip(bins, dots, strict=True), key=lambda pair: pair[0].right.value)
    assert float(order[0][1].get("cy")) > float(order[-1][1].get("cy"))


def test_the_page_says_what_it_warns_of():
    report = report_on(scored([1, 0, 1, 0, 1.0], [0, 1, 0, 1, 0.0]))
    assert "Warning." in page(report, {})


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prefopt", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def test_evaluate_on_the_command_line(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "base")
    (tmp_path / "pairs.json").write_text(json.dumps(tiny.pairs(12)))
    train = ["train", "reward", "--model", "base", "--data", "pairs.json", "--out", "rm", "--adapter", "lora"]
    train += ["--eval-data", "pairs.json", "--learning-rate", "1e-2", "--use-cpu", "true", "--max-steps", "3"]
    assert run(monkeypatch, *train, "--save-strategy", "no") == 0
    said = capsys.readouterr().err
    assert run(monkeypatch, "evaluate", "rm", "--data", "pairs.json", "--out", "report") == 0
    out = capsys.readouterr().out
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert numbers["accuracy"]["n"] == 12
    assert f"{numbers['accuracy']['value']:.1%}" in out
    # The same numbers as the trainer's own evaluation.
    logged = dict(part.split("=") for part in said[said.rindex("evaluation: ") + 12 :].splitlines()[0].split(", "))
    assert numbers["accuracy"]["value"] == pytest.approx(float(logged["eval_rewards/accuracies"]), rel=1e-3)
    assert numbers["loss"] == pytest.approx(float(logged["eval_loss"]), rel=1e-3)


def test_evaluate_says_what_it_takes(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "base")
    (tmp_path / "pairs.json").write_text(json.dumps(tiny.pairs(4)))
    assert run(monkeypatch, "evaluate", "base", "--data", "pairs.json", "--out", "report") == 2
    assert "base is a language model, which a reward has to judge: give reward (--reward)" in capsys.readouterr().err
    assert run(monkeypatch, "evaluate", "nowhere/at/all", "--data", "pairs.json", "--out", "report") == 2
    assert "was found neither as a folder" in capsys.readouterr().err
    assert "reward" in prefopt.algorithms()
