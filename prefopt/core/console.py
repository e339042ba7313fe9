"""The one place that prints. Lines go to standard error, on the first process only, so that pipes stay clean.

Results go to standard output.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

console = Console(stderr=True, highlight=False, soft_wrap=True)

UNBOUNDED = 100_000
"""Columns of a pipe or a file."""


def say(line: str) -> None:
    """Print a line on the first process of a run."""
    if os.environ.get("RANK", "0") == "0":
        console.print(line, markup=False)


def results() -> Console:
    """A console for results, on standard output. Text is shown as it is.

    A terminal wraps what is too wide. In a pipe or a file nothing is wrapped, cut or colored.
    """
    plain = {"markup": False, "emoji": False, "highlight": False}
    terminal = Console(**plain)
    return terminal if terminal.is_terminal else Console(**plain, width=UNBOUNDED)


@contextmanager
def quiet() -> Iterator[None]:
    """Without these lines, for a while."""
    before = console.quiet
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = before
