"""Names that are imported on first use, and targets that users write as text."""

import os
import sys
from pathlib import Path

import pytest

from prefopt.core.errors import UsageError
from prefopt.core.importing import is_target, load_target, on_first_use


def test_a_name_is_read_from_its_home_and_another_is_an_attribute_error() -> None:
    get = on_first_use("math_names", {"sqrt": "math", "path": "os.path"})
    assert get("sqrt") is sys.modules["math"].sqrt
    with pytest.raises(AttributeError, match="module 'math_names' has no attribute 'cbrt'"):
        get("cbrt")


def test_a_home_of_the_same_name_is_the_module_itself() -> None:
    assert on_first_use("os", {"path": "os.path"})("path") is os.path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("reward.py:good", True),
        ("my.package:Good", True),
        ("C:\\code\\reward.py:good", True),
        ("good", False),
        ("length_penalty(limit=3)", False),
        ("0.5*reward.py:good", False),
        ("reward.py:3", False),
    ],
)
def test_what_is_a_target(text: str, expected: bool) -> None:
    assert is_target(text) is expected


def test_a_file_runs_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("number = 3\n")
    file = tmp_path / "mine_of_importing.py"
    file.write_text("from beside import number\nmade = [number]\n")
    first = load_target(f"{file}:made", "reward")
    assert first == [3]
    assert load_target(f"{file}:made", "reward") is first
    file.write_text("made = [4, 'another size']\n")
    assert load_target(f"{file}:made", "reward") == [4, "another size"]
    assert str(tmp_path) not in sys.path


def test_a_file_may_be_called_like_a_module(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("choice = 'mine'\n")
    assert load_target(f"{tmp_path / 'random.py'}:choice", "reward") == "mine"
    assert sys.modules["random"].choice != "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", r"broken\.py cannot be loaded: line 1: invalid syntax"),
        ("a = 1\nb = 1 / 0\n", r"cannot be loaded: line 2: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)\n", r"cannot be loaded: line 1: SystemExit: 3"),
        ("right = 1\n", r"reward: .*broken\.py has no 'rihgt'\. Did you mean 'right'\?"),
    ],
)
def test_what_cannot_be_loaded_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_target(f"{tmp_path / 'broken.py'}:rihgt", "reward")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("reward.py", "'reward.py' is not of the form FILE.py:NAME"),
        ("nowhere.py:f", r"the file nowhere\.py does not exist"),
        ("no.such.module:f", r"the module no\.such\.module cannot be imported: No module named"),
    ],
)
def test_other_targets_are_refused(target: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_target(target, "reward")
