"""prefopt: learning from preferences, with every algorithm behind one trainer.

Names are imported on first use, so that ``import prefopt`` does not wait for torch.
"""

from typing import TYPE_CHECKING

from prefopt.importing import on_first_use

__version__ = "0.1.0"

_HOME = {
    "Trainer": "prefopt.trainer",
    "Watch": "prefopt.watch",
    "algorithms": "prefopt.catalogue.algorithms",
    "explain": "prefopt.catalogue.explain",
    "get_algorithm": "prefopt.catalogue.algorithms",
    "get_objective": "prefopt.objectives",
    "plan": "prefopt.planning",
}

__all__ = sorted([*_HOME, "__version__"])

if TYPE_CHECKING:
    from prefopt.catalogue.algorithms import algorithms as algorithms
    from prefopt.catalogue.algorithms import get_algorithm as get_algorithm
    from prefopt.catalogue.explain import explain as explain
    from prefopt.objectives import get_objective as get_objective
    from prefopt.planning import plan as plan
    from prefopt.trainer import Trainer as Trainer
    from prefopt.watch import Watch as Watch


__getattr__ = on_first_use(__name__, _HOME)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
