from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from prefopt.core import About, PolicyGradient, Rollouts, State, Term, optimum, register


@register("reinforce")
@dataclass(frozen=True, kw_only=True)
class Reinforce(PolicyGradient):
    """The policy gradient itself (Williams 1992), of completions that the policy has just sampled.

    .. math:: L = −mean_i Σ_t A_t log π(y_t)

    summed over the tokens of a completion, averaged over completions. Nothing corrects for a policy that has moved
    since it sampled, so one optimizer step per rollout is what it is for. With leave-one-out advantages this is RLOO,
    with rewards as they are plain REINFORCE. Only ``kl_ratio`` reads the log-probabilities of the sampling policy.
    """

    about = About(
        title="Simple statistical gradient-following algorithms for connectionist reinforcement learning",
        year=1992,
        formula="-mean_i Σ_t A_t log π(y_t)",
        use="A yardstick: no baseline, no clipping, unbiased.",
    )
    evidence = (
        optimum(
            "on its own samples the expected gradient is that of E r − β KL",
            "objectives/test_policy_gradient_exact.py::test_the_expected_gradient_at_ratio_1_is_the_policy_gradient",
        ),
    )

    corrects: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta == 0 or not self.kl_ratio:
            object.__setattr__(self, "needs", replace(self.needs, labels=("advantages",)))

    def terms(self, batch: Rollouts, state: State) -> Mapping[str, Term]:
        surrogate = -self.advantages(batch) * torch.where(batch.tokens.mask, batch.tokens.logps, 0.0)
        return {"policy": Term(batch.tokens.sum(surrogate + self.penalty(batch)))}
