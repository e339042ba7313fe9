"""Modules that are imported when they are needed: for a package's own names, and for names that users give as text."""

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
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


TARGET = re.compile(r"[^()+*:]+(:[\\/][^()+*:]*)?:[A-Za-z_]\w*")
"""``FILE.py:NAME`` or ``package.module:NAME``; a Windows path has a colon of its own."""

_files: dict[Path, tuple[tuple[int, int], ModuleType]] = {}
"""Files that were loaded: what they looked like then, and their modules."""


def is_target(text: str) -> bool:
    """Whether a text is of the form that `load_target` reads."""
    return bool(TARGET.fullmatch(text))


def load_target(target: str, what: str) -> Any:
    """What ``FILE.py:NAME`` or ``package.module:NAME`` names.

    Args:
        target: the text.
        what: what it is given for, for messages ("reward", "verify").

    Raises:
        UsageError: the text is not of that form, the file or module cannot be loaded, or it has no such name.
    """
    module, name = load_module(target, what)
    if not hasattr(module, name):
        raise no_such_name(target, what, module)
    return getattr(module, name)


def load_module(target: str, what: str) -> tuple[ModuleType, str]:
    """The module of ``FILE.py:NAME`` or ``package.module:NAME``, and the name. See `load_target`.

    A file is run once, and again only if it has changed since.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"{what} {target!r} is not of the form FILE.py:NAME or module:NAME.")
    return (_file(Path(place), what) if place.endswith(".py") else _module(place, what)), name


def no_such_name(target: str, what: str, module: ModuleType, others: Iterable[str] = ()) -> UsageError:
    """The error for a name that a module does not have; ``others`` would have done as well."""
    place, _, name = target.rpartition(":")
    public = [key for key in vars(module) if not key.startswith("_")]
    return UsageError(f"{what}: {place} has no {name!r}.{did_you_mean(name, [*public, *others])}")


def _file(path: Path, what: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{what}: the file {path} does not exist.")
    key, status = path.resolve(), path.stat()
    looks = status.st_mtime_ns, status.st_size
    known = _files.get(key)
    if known is not None and known[0] == looks:
        return known[1]
    # A file may be called like a module that is there already: "random.py".
    name = path.stem if known is None and path.stem not in sys.modules else f"{path.stem}@{len(_files)}"
    name = known[1].__name__ if known else name
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    before = sys.modules.get(name)
    sys.modules[name] = module
    # The file may import others that lie beside it.
    sys.path.insert(0, str(key.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        raise UsageError(f"{what}: {path} cannot be loaded: {_where(error, path)}") from error
    finally:
        sys.path.remove(str(key.parent))
    _files[key] = looks, module
    return module


def _module(name: str, what: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        said = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise UsageError(f"{what}: the module {name} cannot be imported: {said}.") from error
    finally:
        sys.path.pop(0)


def _where(error: BaseException, path: Path) -> str:
    """The error with the line of the user's file where it happened."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}."
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    place = f"line {lines[-1]}: " if lines else ""
    return f"{place}{type(error).__name__}: {error}"
