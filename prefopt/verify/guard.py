"""Errors of someone's code become answers of checks."""

import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from prefopt.verify.results import Finding, Outcome, holds

T = TypeVar("T")

PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("torch", "jaxtyping", "beartype", "numpy")


def what_was_raised(error: BaseException) -> str:
    """An error with the line of someone's code in which it happened, where that is known."""
    said = " ".join(str(error).split())
    frame = next((one for one in reversed(traceback.extract_tb(error.__traceback__)) if _is_theirs(one.filename)), None)
    where = f" ({Path(frame.filename).name}, line {frame.lineno}, in {frame.name})" if frame else ""
    return f"{type(error).__name__}: {said}{where}"


def _is_theirs(file: str) -> bool:
    path = Path(file)
    if path.is_relative_to(PACKAGE):
        # An objective of prefopt that is verified counts as someone's.
        return path.is_relative_to(PACKAGE / "objectives")
    folders = [Path(sys.modules[name].__file__ or "").parent for name in LIBRARIES if name in sys.modules]
    return not any(path.is_relative_to(folder) for folder in folders)


def guarded(check: Callable[[T], Outcome]) -> Callable[[T], Outcome]:
    """A check that fails where the code it calls raises an error."""

    @functools.wraps(check)
    def run(one: T) -> Outcome:
        try:
            return check(one)
        except Exception as error:
            return holds(False, f"it raises {what_was_raised(error)}")

    return run


def found(name: str, look: Callable[[], Finding]) -> Finding:
    """A finding, which is a failure where the code it calls raises an error."""
    try:
        return look()
    except Exception as error:
        return Finding(name, False, detail=f"it raises {what_was_raised(error)}")
