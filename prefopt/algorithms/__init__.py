"""Algorithms by name: an objective, where its examples come from, and a recipe of training arguments."""

import sys
from types import ModuleType

from prefopt.algorithms.algorithm import Algorithm, algorithms, get_algorithm
from prefopt.algorithms.explain import explain, listing
from prefopt.algorithms.recipes import Recipe

__all__ = ["Algorithm", "Recipe", "algorithms", "explain", "get_algorithm", "listing"]


class _Listing(ModuleType):
    """This package, which is also the function `prefopt.algorithms`.

    Importing a submodule binds the package's name in its parent, so a function of that name would be lost as soon as
    anything imports this package (docs/decisions/0001).
    """

    def __call__(self) -> list[str]:
        """The names of all algorithms, sorted."""
        return algorithms()


sys.modules[__name__].__class__ = _Listing
