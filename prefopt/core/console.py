"""The one place that prints. Lines go to standard error, on the first process only, so that pipes stay clean."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """Print a line on the first process of a run."""
    if os.environ.get("RANK", "0") == "0":
        console.print(line, markup=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Without these lines, for a while."""
    before = console.quiet
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = before
