"""The demo from one end to the other on a toy lab, and what its report must be."""

import io
import json
import re
import sys
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console
from toy_lab import toy_lab
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from prefopt.core import console
from prefopt.core.errors import UsageError
from prefopt.lab import demo
from prefopt.lab.charts import place_labels, reward_chart
from prefopt.lab.measure import Cost, Estimate, Result
from prefopt.lab.quiet import quiet

VOID = {"meta", "br", "img", "link", "input", "hr", "path", "use", "rect"}
BUDGET = demo.Budget(steps=3, completions=8, n=2, prompts=6, k=2, pairs=8, max_new_tokens=6, seeds=(0, 1))
RATES = dict.fromkeys([*demo.ALGORITHMS, "reward"], 1e-2)


class Page(HTMLParser):
    """Tags that are closed as they were opened, text, and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The demo, with a toy lab and a small budget in place of the real ones."""
    out, world = tmp_path_factory.mktemp("demo"), toy_lab(tmp_path_factory.mktemp("toy"))
    patch = pytest.MonkeyPatch()
    patch.setitem(sys.modules, "prefopt.lab.world", SimpleNamespace(prepare=lambda: world))
    patch.setitem(sys.modules, "prefopt.lab.rates", SimpleNamespace(RATES=RATES))
    patch.setattr(demo, "Budget", lambda seeds: BUDGET)
    path = demo.run_demo(out, full=True)
    patch.undo()
    return SimpleNamespace(out=out, path=path, page=Page(path.read_text()), lab=world)


def test_the_report_is_a_sound_page_that_asks_nothing_of_the_network(ran: SimpleNamespace) -> None:
    text = ran.path.read_text()
    assert ran.page.open == []
    assert ran.page.tags[0] == ("html", {"lang": "en"})
    assert "http" not in text
    assert "url(http" not in text
    assert not re.search(r"@import|<script|<link|<img", text)
    for tag, attributes in ran.page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert any(tag == "title" for tag, _ in ran.page.tags)
    assert all(attributes.get("aria-label") for _, attributes in ran.page.tags if attributes.get("role") == "img")
    assert "prefers-color-scheme: dark" in text


def test_every_reference_inside_the_page_has_its_target(ran: SimpleNamespace) -> None:
    ids = [attributes["id"] for _, attributes in ran.page.tags if "id" in attributes]
    used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', ran.path.read_text()))
    assert used
    assert used <= set(ids)


def test_the_report_shows_every_algorithm_and_escapes_what_it_quotes(ran: SimpleNamespace) -> None:
    rows = [tag for tag, attributes in ran.page.tags if tag == "th" and attributes.get("scope") == "row"]
    assert len(rows) == 1 + len(demo.ALGORITHMS)
    words = " ".join(ran.page.words)
    for name in demo.ALGORITHMS:
        assert words.count(name) >= 4, name
    assert ran.lab.held_out_prompts[0].startswith("<b>")
    assert ran.lab.held_out_prompts[0] in words
    assert not any(tag == "b" for tag, _ in ran.page.tags)
    assert "goodness" in words


def test_results_hold_both_kinds_of_interval_and_what_was_trained(ran: SimpleNamespace) -> None:
    results = json.loads((ran.out / "results.json").read_text())
    assert [row["name"] for row in results["results"]] == list(demo.ALGORITHMS)
    for row in results["results"]:
        for key in ("reward", "win_rate", "kl", "accuracy", "length"):
            estimate = row[key]
            assert estimate["low"] <= estimate["mean"] <= estimate["high"]
            assert estimate["seed_low"] <= estimate["mean"] <= estimate["seed_high"]
        assert row["seeds"] == 2
        assert row["kl"]["seed_high"] - row["kl"]["seed_low"] > 1e-6, "seeds must give different runs"
        assert row["cost"]["seconds"] > 0
        assert [step for step, _ in results["curves"][row["name"]]] == [1, 2, 3]
    assert results["start"]["kl"] is None
    assert len(results["shown"]) == demo.SHOWN_PROMPTS * (1 + len(demo.ALGORITHMS))


def test_the_chart_for_a_readme_is_an_svg_of_its_own(ran: SimpleNamespace) -> None:
    text = (ran.out / "reward-kl.svg").read_text()
    assert text.startswith("<svg")
    assert set(re.findall(r'https?://[^"<\s]*', text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "var(" not in text
    for name in demo.ALGORITHMS:
        assert name in text


def test_trained_models_are_saved_and_differ_from_the_start(ran: SimpleNamespace) -> None:
    start = AutoModelForCausalLM.from_pretrained(ran.lab.model).state_dict()
    for name in demo.ALGORITHMS:
        trained = AutoModelForCausalLM.from_pretrained(ran.out / "models" / name).state_dict()
        assert any(not np.array_equal(start[key], trained[key]) for key in start), name


def test_a_step_shows_every_algorithm_as_many_completions() -> None:
    sizes = {name: demo.Budget(completions=64, n=4).examples(name) for name in demo.ALGORITHMS}
    pairs = dict.fromkeys(("dpo", "ipo", "orpo", "simpo"), 32)
    online = dict.fromkeys(("rejection_sampling", "grpo", "ppo"), 16)
    assert sizes == {"sft": 64, "kto": 64, **pairs, **online}


def test_a_missing_learning_rate_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no learning rate for ipo"):
        demo.compare(toy_lab(tmp_path), tmp_path, rates={"dpo": 1e-4}, algorithms=("dpo", "ipo"))


def test_lines_of_the_trainer_are_held_back_and_come_back() -> None:
    bars = transformers_logging.is_progress_bar_enabled()
    with quiet():
        assert console.console.quiet
        assert not transformers_logging.is_progress_bar_enabled()
    assert not console.console.quiet
    assert transformers_logging.is_progress_bar_enabled() == bars
    with pytest.raises(RuntimeError), quiet():
        raise RuntimeError
    assert not console.console.quiet


def result(name: str, kl: float, reward: float, half: float = 0.01) -> Result:
    x, y = Estimate(kl, kl - 0.2, kl + 0.2), Estimate(reward, reward - half, reward + half)
    return Result(name, 1, y, Estimate(20.0, 19.0, 21.0), y, x, y, Cost(1.0, 500.0, 50.0))


def test_the_table_names_every_algorithm_and_its_half_widths() -> None:
    start = Result("start", 1, Estimate(0.4, 0.38, 0.42), Estimate(20.0, 19.0, 21.0))
    comparison = demo.Comparison(start, (result("dpo", 9.0, 0.7), result("rejection_sampling", 99.0, 0.7)), {}, (), {})
    lines = Console(width=80, file=io.StringIO(), record=True)
    demo.print_table(comparison, lines)
    text = lines.export_text()
    assert "dpo" in text
    assert "rejection_sampling" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "0.700 ±0.010" in text
    assert "0.400 ±0.020" in text
    assert "9.0 ±0.2" in text


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.3])
def test_labels_cover_neither_each_other_nor_points(spread: float) -> None:
    """Even where all algorithms end up at nearly the same place."""
    numbers = np.random.default_rng(1)
    names = demo.ALGORITHMS
    results = [result(name, 8 + 20 * spread * numbers.normal(), 0.7 + spread * numbers.normal()) for name in names]
    figure = reward_chart(Result("start", 1, Estimate(0.4, 0.38, 0.42), Estimate(20.0, 19.0, 21.0)), results)
    renderer = figure.canvas.get_renderer()
    labels = [text for text in figure.axes[0].texts if text.get_text()]
    assert len(labels) == len(names) + 1
    boxes = [label.get_window_extent(renderer) for label in labels]
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    points = figure.axes[0].transData.transform([(0.0, 0.4), *((r.kl.mean, r.reward.mean) for r in results)])
    assert not any(box.contains(*point) for box in boxes for point in points)


def test_a_label_far_from_its_point_gets_a_line() -> None:
    axes = plt.Figure(figsize=(4, 3)).add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    place_labels(axes, [(f"name {i}", 0.5, 0.5, "k") for i in range(12)], [])
    assert sum(text.arrow_patch is not None for text in axes.texts) > 0
