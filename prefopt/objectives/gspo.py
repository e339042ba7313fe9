from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prefopt.core import (
    About,
    PolicyGradient,
    Rollouts,
    State,
    Term,
    bounded_exp,
    clipped,
    independent,
    parameter,
    register,
)


@register("gspo")
@dataclass(frozen=True, kw_only=True)
class GSPO(PolicyGradient):
    """Group sequence policy optimization (Zheng et al. 2025, arXiv 2507.18071): one ratio for a whole completion.

    .. math:: L = −mean_i min(s_i A_i, clip(s_i, 1 − ε_low, 1 + ε_high) A_i),
              s_i = exp((1/len_i) Σ_t log(π(y_t)/π_old(y_t)))

    A_i as in GRPO; where advantages differ between the tokens of a completion their mean is taken. The bounds are
    those of the second version of the paper (5.1). At the sampling policy the gradient is GRPO's without its KL.
    """

    about = About(
        title="Group Sequence Policy Optimization",
        year=2025,
        arxiv="2507.18071",
        formula="-mean_i min(s_i A_i, clip(s_i, 1-ε_low, 1+ε_high) A_i), s_i = (π/π_old)^(1/len)",
        use="Mixture-of-experts policies and long answers, where single tokens' ratios are noise.",
    )
    evidence = (independent("verl-project/verl", "objectives/test_policy_gradient.py"),)

    epsilon_low: float = parameter(3e-4, "how far the ratio may fall before its gradient stops", above=0, below=1)
    epsilon_high: float = parameter(4e-4, "how far the ratio may rise before its gradient stops", above=0)

    def terms(self, batch: Rollouts, state: State) -> Mapping[str, Term]:
        ratio, advantages = self.sequence_ratio(batch), batch.averaged(self.advantages(batch))
        surrogate = clipped(ratio, advantages, self.epsilon_low, self.epsilon_high)
        return {"policy": Term(surrogate + batch.averaged(self.penalty(batch)))}

    def sequence_ratio(self, batch: Rollouts) -> Float[Tensor, " n"]:
        """s_i, the geometric mean of the tokens' ratios."""
        return bounded_exp(batch.averaged(self.log_ratio(batch)))

    def metrics(self, batch: Rollouts, state: State) -> dict[str, Tensor]:
        ratio, advantages = self.sequence_ratio(batch), batch.averaged(self.advantages(batch))
        high, low = ratio > 1 + self.epsilon_high, ratio < 1 - self.epsilon_low
        held = ((advantages > 0) & high) | ((advantages < 0) & low)
        return {**super().metrics(batch, state), "policy/clip_fraction": held.to(ratio.dtype)}
