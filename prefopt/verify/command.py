"""``prefopt verify``: a function in a file, an objective in a module, or the losses of another library."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from prefopt.errors import UsageError


def main_verify(target: str, as_: str | None = None, against: str | None = None) -> int:
    """Verify and print the report.

    Args:
        target: ``file.py:name`` or ``package.module:name``, a function or a subclass of `Objective`; an empty string
            with ``against``, or the name of a loss to look at alone.
        as_: the loss that a function is meant to be.
        against: ``"trl"``: the installed TRL, one row per loss.

    Returns:
        The exit status: 0 if every check passed.

    Raises:
        UsageError: a target that cannot be loaded, or an unknown name.
    """
    console = Console()
    if against is not None:
        if against != "trl":
            raise UsageError(f"cannot compare with {against!r}; 'trl' is the library that is known.")
        from prefopt.verify.against_trl import compare

        comparison = compare([target] if target else None)
        console.print(comparison)
        return 0
    from prefopt.verify.verifier import verify

    report = verify(load(target), as_)
    console.print(report)
    return 0 if report else 1


def load(target: str) -> Callable[..., Any]:
    """The function or class that ``file.py:name`` or ``module:name`` names."""
    place, colon, name = target.rpartition(":")
    if not colon or not place:
        raise UsageError(f"cannot read {target!r}; write file.py:function or package.module:Objective.")
    module = _file(Path(place)) if place.endswith(".py") else _module(place)
    if not hasattr(module, name):
        found = ", ".join(sorted(key for key in vars(module) if not key.startswith("_"))) or "nothing"
        raise UsageError(f"{place} has no {name!r}; it has {found}.")
    return getattr(module, name)


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no file {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and shrunk counterexamples look their module up by name.
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"cannot import {name}: {error}.") from error
    finally:
        sys.path.pop(0)
