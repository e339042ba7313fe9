"""The online algorithms, one paper a file. Importing this package registers them all."""

import importlib
import pkgutil

from prefopt import objectives
from prefopt.algorithms.assembly import ALIASES, ASSEMBLIES, Assembly, register_algorithm
from prefopt.core import plugins, registry

__all__ = ["assemblies", "register_algorithm"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def assemblies() -> dict[str, Assembly]:
    """All online algorithms by name, those of plug-ins included."""
    objectives.load()
    tables = (ASSEMBLIES, ALIASES, registry.REGISTRY, registry.ALIASES, registry.AMBIGUOUS)
    plugins.load_plugins(plugins.ALGORITHMS, *tables)
    return ASSEMBLIES
