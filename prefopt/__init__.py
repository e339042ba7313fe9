"""prefopt: learning from preferences, with every algorithm behind one trainer.

The names below are what users write; all else is internal and may move. They are imported on first use, so that
``import prefopt`` does not wait for torch.
"""

from typing import TYPE_CHECKING

from prefopt.core.importing import on_first_use
from prefopt.core.version import VERSION

if TYPE_CHECKING:
    from prefopt import algorithms as algorithms
    from prefopt import verify as verify
    from prefopt.algorithms.algorithm import Algorithm as Algorithm
    from prefopt.algorithms.algorithm import get_algorithm as get_algorithm
    from prefopt.algorithms.listing import explain as explain
    from prefopt.algorithms.online import register_algorithm as register_algorithm
    from prefopt.core.batches import Completions as Completions
    from prefopt.core.batches import Demonstrations as Demonstrations
    from prefopt.core.batches import Labelled as Labelled
    from prefopt.core.batches import Pairs as Pairs
    from prefopt.core.batches import Ranked as Ranked
    from prefopt.core.batches import Rollouts as Rollouts
    from prefopt.core.batches import TokenLogps as TokenLogps
    from prefopt.core.errors import DataError as DataError
    from prefopt.core.errors import ModelError as ModelError
    from prefopt.core.errors import OutOfMemory as OutOfMemory
    from prefopt.core.errors import PrefoptError as PrefoptError
    from prefopt.core.errors import UsageError as UsageError
    from prefopt.core.evidence import Evidence as Evidence
    from prefopt.core.loss import Loss as Loss
    from prefopt.core.loss import State as State
    from prefopt.core.loss import Term as Term
    from prefopt.core.needs import About as About
    from prefopt.core.needs import Needs as Needs
    from prefopt.core.numerics import keyed_uniform as keyed_uniform
    from prefopt.core.numerics import log1mexp as log1mexp
    from prefopt.core.numerics import masked_logsumexp as masked_logsumexp
    from prefopt.core.objective import Objective as Objective
    from prefopt.core.policy_gradient import PolicyGradient as PolicyGradient
    from prefopt.core.recipe import Published as Published
    from prefopt.core.recipe import Range as Range
    from prefopt.core.recipe import Recipe as Recipe
    from prefopt.core.registry import register as register
    from prefopt.core.registry import register_preset as register_preset
    from prefopt.core.settings import parameter as parameter
    from prefopt.data.settings import DataSettings as DataSettings
    from prefopt.memory.estimate import plan as plan
    from prefopt.objectives import get_objective as get_objective
    from prefopt.rewards.judge import Judge as Judge
    from prefopt.rewards.reward import Ensemble as Ensemble
    from prefopt.rewards.reward import make_reward as make_reward
    from prefopt.rewards.reward_model import RewardModel as RewardModel
    from prefopt.rollouts import AdvantageEstimator as AdvantageEstimator
    from prefopt.rollouts import Group as Group
    from prefopt.rollouts import KLPenalty as KLPenalty
    from prefopt.rollouts import KLShapedEstimator as KLShapedEstimator
    from prefopt.rollouts import Rollout as Rollout
    from prefopt.rollouts import RolloutProcessor as RolloutProcessor
    from prefopt.rollouts import Selection as Selection
    from prefopt.rollouts import example_of as example_of
    from prefopt.rollouts.settings import GenerationSettings as GenerationSettings
    from prefopt.training.trainer import Trainer as Trainer
    from prefopt.training.watch import Watch as Watch

__version__ = VERSION

_HOME = {
    "About": "prefopt.core.needs",
    "AdvantageEstimator": "prefopt.rollouts",
    "Algorithm": "prefopt.algorithms.algorithm",
    "Completions": "prefopt.core.batches",
    "DataError": "prefopt.core.errors",
    "DataSettings": "prefopt.data.settings",
    "Demonstrations": "prefopt.core.batches",
    "Ensemble": "prefopt.rewards.reward",
    "Evidence": "prefopt.core.evidence",
    "GenerationSettings": "prefopt.rollouts.settings",
    "Group": "prefopt.rollouts",
    "Judge": "prefopt.rewards.judge",
    "KLPenalty": "prefopt.rollouts",
    "KLShapedEstimator": "prefopt.rollouts",
    "Labelled": "prefopt.core.batches",
    "Loss": "prefopt.core.loss",
    "ModelError": "prefopt.core.errors",
    "Needs": "prefopt.core.needs",
    "Objective": "prefopt.core.objective",
    "OutOfMemory": "prefopt.core.errors",
    "Pairs": "prefopt.core.batches",
    "PolicyGradient": "prefopt.core.policy_gradient",
    "PrefoptError": "prefopt.core.errors",
    "Published": "prefopt.core.recipe",
    "Range": "prefopt.core.recipe",
    "Ranked": "prefopt.core.batches",
    "Recipe": "prefopt.core.recipe",
    "RewardModel": "prefopt.rewards.reward_model",
    "Rollout": "prefopt.rollouts",
    "RolloutProcessor": "prefopt.rollouts",
    "Rollouts": "prefopt.core.batches",
    "Selection": "prefopt.rollouts",
    "State": "prefopt.core.loss",
    "Term": "prefopt.core.loss",
    "TokenLogps": "prefopt.core.batches",
    "Trainer": "prefopt.training.trainer",
    "UsageError": "prefopt.core.errors",
    "Watch": "prefopt.training.watch",
    "algorithms": "prefopt.algorithms",
    "example_of": "prefopt.rollouts",
    "explain": "prefopt.algorithms.listing",
    "get_algorithm": "prefopt.algorithms.algorithm",
    "get_objective": "prefopt.objectives",
    "keyed_uniform": "prefopt.core.numerics",
    "log1mexp": "prefopt.core.numerics",
    "make_reward": "prefopt.rewards.reward",
    "masked_logsumexp": "prefopt.core.numerics",
    "parameter": "prefopt.core.settings",
    "plan": "prefopt.memory.estimate",
    "register": "prefopt.core.registry",
    "register_algorithm": "prefopt.algorithms.online",
    "register_preset": "prefopt.core.registry",
    "verify": "prefopt.verify",
}

__all__ = sorted([*_HOME, "__version__"])

__getattr__ = on_first_use(__name__, _HOME)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
