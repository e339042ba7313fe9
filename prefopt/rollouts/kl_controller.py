"""The coefficient of the KL in the reward, fixed or following the KL that is measured."""

from prefopt.rollouts.credit import Gae, Shaped

LARGEST_ERROR = 0.2


class KLController:
    """β of the KL in the reward.

    An adaptive one (Ziegler et al. 2019, arXiv 1909.08593, 2.2) moves after every rollout of n completions,

    .. math:: β ← β (1 + clip(KL/target − 1, −0.2, 0.2) · n/horizon)

    and stays where it is at KL = target. n should stay below 5 · horizon, or β could become negative; it never does
    here, because the factor is kept at 0 or more.

    Attributes:
        coefficient: β now.
    """

    def __init__(self, source: object) -> None:
        self.coefficient = source.kl_coef if isinstance(source, Shaped) else 0.0
        adaptive = isinstance(source, Gae) and source.kl_controller == "adaptive"
        self._rule = (source.kl_target, source.kl_horizon) if adaptive else None

    def update(self, kl: float, completions: int) -> None:
        """Take notice of the mean KL of a completion, in nats, over that many completions."""
        if self._rule is None:
            return
        target, horizon = self._rule
        error = min(max(kl / target - 1, -LARGEST_ERROR), LARGEST_ERROR)
        self.coefficient *= max(1 + error * completions / horizon, 0.0)
