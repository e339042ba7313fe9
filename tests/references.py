"""The scalar references, one file per objective in ``tests/reference``."""

import importlib.util
import sys
from functools import cache
from pathlib import Path

from prefopt.verify.mathematics import Reference

FOLDER = Path(__file__).parent / "reference"


@cache
def reference(name: str) -> Reference:
    """The mathematics of the objective whose class is registered as ``name``.

    Raises:
        AssertionError: there is none, which fails the suite.
    """
    path = FOLDER / f"{name}.py"
    assert path.is_file(), f"{name} has no reference: write its equation in mpmath in tests/reference/{name}.py"
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"reference_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Reference(module)
