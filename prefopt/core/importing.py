"""Modules that are imported when they are needed: for a package's own names, and for names that users give as text."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from prefopt.core.errors import UsageError, did_you_mean


def on_first_use(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package whose names are imported when they are asked for.

    Args:
        package: The package's name.
        homes: The module of each name; the name itself may be a module.
    """

    def get(name: str) -> Any:
        if name in homes:
            home = importlib.import_module(homes[name])
            return home if homes[name] == f"{package}.{name}" else getattr(home, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get


def load_target(target: str, what: str) -> Any:
    """What ``FILE.py:NAME`` or ``package.module:NAME`` names.

    Args:
        target: the text.
        what: what it is given for, for messages ("reward", "verify").

    Raises:
        UsageError: the text is not of that form, the file or module cannot be loaded, or it has no such name.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"{what} {target!r} is not of the form FILE.py:NAME or module:NAME.")
    module = _file(Path(place), what) if place.endswith(".py") else _module(place, what)
    if not hasattr(module, name):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise UsageError(f"{what}: {place} has no {name!r}.{did_you_mean(name, public)}")
    return getattr(module, name)


def _file(path: Path, what: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{what}: the file {path} does not exist.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{what}: {path} cannot be loaded: {_where(error, path)}") from error
    return module


def _module(name: str, what: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{what}: the module {name} cannot be imported: {error}.") from error
    finally:
        sys.path.pop(0)


def _where(error: Exception, path: Path) -> str:
    """The error with the line of the user's file where it happened."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}."
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    place = f"line {lines[-1]}: " if lines else ""
    return f"{place}{type(error).__name__}: {error}"
