"""The KL in the reward: its coefficient, fixed or following the KL that is measured."""

from dataclasses import dataclass

LARGEST_ERROR = 0.2


@dataclass(frozen=True)
class KLPenalty:
    """The KL to the reference that a reward has in it, −β · KL at each token.

    Attributes:
        coefficient: β at the start.
        target: The KL of a completion, in nats, that an adaptive β aims at; None for a fixed β.
        horizon: The number of completions over which an adaptive β reacts.
    """

    coefficient: float
    target: float | None = None
    horizon: float = 10_000


class KLController:
    """β of the KL in the reward.

    An adaptive one (Ziegler et al. 2019, arXiv 1909.08593, 2.2) moves after every rollout of n completions,

    .. math:: β ← β (1 + clip(KL/target − 1, −0.2, 0.2) · n/horizon)

    and stays where it is at KL = target. n should stay below 5 · horizon, or β could become negative; it never does
    here, because the factor is kept at 0 or more.

    Args:
        penalty: The KL in the reward; None where the reward has none, and β is 0.

    Attributes:
        coefficient: β now.
    """

    def __init__(self, penalty: KLPenalty | None) -> None:
        self.penalty = penalty or KLPenalty(0.0)
        self.coefficient = self.penalty.coefficient

    def update(self, kl: float, completions: int) -> None:
        """Take notice of the mean KL of a completion, in nats, over that many completions."""
        target, horizon = self.penalty.target, self.penalty.horizon
        if target is None:
            return
        error = min(max(kl / target - 1, -LARGEST_ERROR), LARGEST_ERROR)
        self.coefficient *= max(1 + error * completions / horizon, 0.0)
