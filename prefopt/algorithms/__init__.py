"""Algorithms by name: an objective, where its examples come from, and a recipe of training arguments."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from prefopt.core.importing import on_first_use

if TYPE_CHECKING:
    from prefopt.algorithms.algorithm import Algorithm as Algorithm
    from prefopt.algorithms.algorithm import get_algorithm as get_algorithm
    from prefopt.algorithms.listing import algorithms as algorithms
    from prefopt.algorithms.listing import explain as explain
    from prefopt.algorithms.listing import list_algorithms as list_algorithms
    from prefopt.algorithms.online import register_algorithm as register_algorithm

# Lists and explanations come from an index, without torch.
_HOME = {
    "Algorithm": "prefopt.algorithms.algorithm",
    "algorithms": "prefopt.algorithms.listing",
    "explain": "prefopt.algorithms.listing",
    "get_algorithm": "prefopt.algorithms.algorithm",
    "list_algorithms": "prefopt.algorithms.listing",
    "register_algorithm": "prefopt.algorithms.online",
}

__all__ = ["Algorithm", "algorithms", "explain", "get_algorithm", "list_algorithms", "register_algorithm"]

__getattr__ = on_first_use(__name__, _HOME)


class _Callable(ModuleType):
    """This package, which is also the function `prefopt.algorithms`.

    Importing a submodule binds the package's name in its parent, so a function of that name would be lost as soon as
    anything imports this package (docs/decisions/0001).
    """

    def __call__(self) -> list[str]:
        """The names of all algorithms, sorted."""
        from prefopt.algorithms.listing import algorithms

        return algorithms()


sys.modules[__name__].__class__ = _Callable
