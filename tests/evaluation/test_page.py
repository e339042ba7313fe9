"""What all pages share: escaping, one style sheet, and that they are files of their own."""

import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from prefopt.evaluation import page
from prefopt.evaluation.page import render
from prefopt.lab.charts import COLOURS, INK

TEMPLATES = Path(page.__file__).parent / "templates"
PAGES = sorted(path.name for path in TEMPLATES.glob("*.html") if path.name not in ("page.html", "parts.html"))
STYLE = (TEMPLATES / "style.css").read_text(encoding="utf-8")


def variables(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))


LIGHT, DARK = map(variables, STYLE.split("@media (prefers-color-scheme: dark)", 1))


def test_values_are_escaped_and_what_was_drawn_is_not() -> None:
    values = {"description": "<script>x</script>", "careful": Markup("<svg></svg>"), "free": "<svg>", "rows": []}
    html = render("overoptimization.html", **values, facts={"<i>": "&", "b": 3})
    assert "<script" not in html
    assert "&lt;script&gt;x" in html
    assert "<dt>&lt;i&gt;</dt><dd>&amp;</dd>" in html
    assert html.count("<svg>") == 1
    assert "&lt;svg&gt;" in html


def test_a_name_without_a_value_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="description"):
        render("overoptimization.html", rows=[], careful="", free="", facts={})


def test_warnings_are_sentences() -> None:
    html = render(
        "overoptimization.html", description="", careful="", free="", rows=[], facts={}, warnings=["the <reward> rose."]
    )
    assert "<b>Warning.</b> The &lt;reward&gt; rose." in html


@pytest.mark.parametrize("name", PAGES)
def test_no_template_writes_a_style_or_asks_the_network(name: str) -> None:
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    assert text.startswith('{% extends "page.html" %}')
    assert not re.search(r"<style|<script|<link|https?:|url\(|@import|\| *safe|autoescape", text)


def test_there_is_one_style_sheet_and_every_page_has_it() -> None:
    assert [path.name for path in TEMPLATES.glob("*.css")] == ["style.css"]
    html = render("overoptimization.html", description="", careful="", free="", rows=[], facts={})
    assert STYLE in html
    assert not re.search(r"https?:|url\(|@import", STYLE)


def test_colors_have_a_counterpart_in_the_dark() -> None:
    assert set(LIGHT) == set(DARK)
    assert [LIGHT[f"c{i}"] for i in range(len(COLOURS))] == list(COLOURS)
    assert (LIGHT["ink"], f"c{len(COLOURS)}" in LIGHT) == (INK, False)
    used = set(re.findall(r"var\(--([\w-]+)", STYLE)) - {"c"}
    assert used <= set(LIGHT)


def contrast(one: str, other: str) -> float:
    """The ratio that accessibility guidelines ask to be 4.5 for text."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read(theme: dict[str, str]) -> None:
    for text, paper in (("ink", "paper"), ("soft", "paper"), ("ink", "card"), ("soft", "card"), ("warn", "warn-paper")):
        assert contrast(theme[text], theme[paper]) >= 4.5, (text, paper)
    # Names in charts: short and of middle weight.
    assert all(contrast(theme[f"c{i}"], theme["paper"]) >= 3.5 for i in range(len(COLOURS)))
