from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prefopt.core import About, PolicyGradient, Rollouts, State, Term, independent, optimum, parameter, register


@register("cispo")
@dataclass(frozen=True, kw_only=True)
class CISPO(PolicyGradient):
    """Clipped importance sampling weights (MiniMax-M1 2025, arXiv 2506.13585): clip the weight, drop no token.

    .. math:: L = −(1/Σ_i len_i) Σ_i Σ_t sg[clip(ρ_t, 1 − ε_low, 1 + ε_high)] A_i log π(y_t)

    A_i as in GRPO. Only the upper bound was active in the paper's runs: at ε_low = 1 there is no lower one. The
    paper does not report its bound; a weight of 5 is ScaleRL's (1 + ε_high). The value is not DAPO's, although the
    gradients agree where nothing is clipped.

    Where implementations differ: TRL's ``epsilon_high`` is the cap itself, without a lower bound; verl clips both
    sides.
    """

    about = About(
        title="MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention",
        year=2025,
        arxiv="2506.13585",
        formula="-(1/Σ len) Σ_i Σ_t sg[clip(ρ_t, 1-ε_low, 1+ε_high)] A_i log π(y_t)",
        use="Several steps per rollout without losing the rare tokens that a clip would drop.",
    )
    evidence = (
        optimum(
            "on its own samples the expected gradient is that of E r − β KL",
            "objectives/test_policy_gradient_exact.py::test_the_expected_gradient_at_ratio_1_is_the_policy_gradient",
        ),
        independent("verl-project/verl", "objectives/test_policy_gradient.py"),
    )

    needs = replace(PolicyGradient.needs, detaches="the clipped ratio")

    epsilon_low: float = parameter(1.0, "1 minus the least weight", above=0, at_most=1)
    epsilon_high: float = parameter(4.0, "the greatest weight minus 1", above=0)

    def terms(self, batch: Rollouts, state: State) -> Mapping[str, Term]:
        weight = self.ratio(batch).detach().clamp(1 - self.epsilon_low, 1 + self.epsilon_high)
        surrogate = -weight * self.advantages(batch) * torch.where(batch.tokens.mask, batch.tokens.logps, 0.0)
        return {"policy": Term(batch.tokens.sum(surrogate + self.penalty(batch)), per="token")}

    def metrics(self, batch: Rollouts, state: State) -> dict[str, Tensor]:
        ratio = self.ratio(batch)[batch.tokens.mask]
        held = (ratio > 1 + self.epsilon_high) | (ratio < 1 - self.epsilon_low)
        return {**super().metrics(batch, state), "policy/clip_fraction": held.to(ratio.dtype)}
