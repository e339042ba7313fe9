"""Results on standard output: whole and plain in a pipe, wrapped on a terminal, and as they are."""

import io

import pytest
from rich.table import Table

from prefopt.core.console import results

NAME = "reward/" + "long_name_" * 30


def table() -> Table:
    made = Table(box=None, pad_edge=False, header_style="")
    made.add_column("name", overflow="fold")
    made.add_column("value", justify="right")
    made.add_row(NAME, "[red]1[/red] :smile:")
    return made


def test_in_a_pipe_nothing_is_wrapped_cut_colored_or_interpreted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    results().print(table())
    results().print("word " * 200, style="dim")
    heading, row, words = capsys.readouterr().out.splitlines()
    assert heading.split() == ["name", "value"]
    assert row == f"{NAME}  [red]1[/red] :smile:"
    assert words.split() == ["word"] * 200


def test_a_terminal_wraps_and_cuts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    shown = Terminal()
    monkeypatch.setattr("sys.stdout", shown)
    results().print(table())
    lines = shown.getvalue().splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 40
    assert "".join(line.split()[0] for line in lines[1:]) == NAME
