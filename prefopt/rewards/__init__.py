"""What completions are worth: functions, penalties, reward models, ensembles and judges.

The names are imported on first use: those that score with a model need transformers, which takes seconds.
"""

from typing import TYPE_CHECKING

from prefopt.core.importing import on_first_use

if TYPE_CHECKING:
    from prefopt.rewards.judge import Judge as Judge
    from prefopt.rewards.reward import Ensemble as Ensemble
    from prefopt.rewards.reward import Reward as Reward
    from prefopt.rewards.reward import make_reward as make_reward
    from prefopt.rewards.reward_model import RewardModel as RewardModel

_HOME = {
    "Ensemble": "prefopt.rewards.reward",
    "Judge": "prefopt.rewards.judge",
    "Reward": "prefopt.rewards.reward",
    "RewardModel": "prefopt.rewards.reward_model",
    "make_reward": "prefopt.rewards.reward",
}

__getattr__ = on_first_use(__name__, _HOME)

__all__ = ["Ensemble", "Judge", "Reward", "RewardModel", "make_reward"]
