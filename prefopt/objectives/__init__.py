"""The objectives: one paper, one file. `load` imports every file here and every installed third-party one."""

import importlib
import pkgutil
from functools import cache
from typing import Any

from prefopt.core import plugins, registry, sums
from prefopt.core.objective import Objective


@cache
def load_own() -> None:
    """Import every objective of this package."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def load() -> None:
    """Import every objective of this package, then those that other packages offer as plug-ins."""
    load_own()
    plugins.load_plugins(plugins.OBJECTIVES, registry.REGISTRY, registry.ALIASES, registry.AMBIGUOUS)


def get_objective(name: str, **hyperparameters: Any) -> Objective:
    """The objective called ``name`` (or by one of its aliases), for use in any loop.

    A weighted sum is written as one: ``"dpo(beta=0.2) + 0.2*sft"``.

    Example:
        >>> loss = get_objective("dpo", beta=0.1)(pairs)
        >>> loss.mean().backward()

    Raises:
        UsageError: an unknown or ambiguous name, an unknown hyperparameter, or a value out of bounds.
    """
    load()
    return sums.build(name, **hyperparameters)


def names() -> list[str]:
    """All registered names, without aliases."""
    load()
    return sorted(registry.REGISTRY)
