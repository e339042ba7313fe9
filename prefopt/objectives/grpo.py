from collections.abc import Mapping
from dataclasses import dataclass

from prefopt.core import About, PolicyGradient, Range, Rollouts, State, Term, independent, parameter, register


@register("grpo")
@dataclass(frozen=True, kw_only=True)
class GRPO(PolicyGradient):
    """Group relative policy optimization (DeepSeekMath, Shao et al. 2024, arXiv 2402.03300, eq. 3 and 4).

    .. math:: L = −(1/G) Σ_i (1/len_i) Σ_t {min(ρ_t A_i, clip(ρ_t, 1 − ε, 1 + ε) A_i) − β·k3_t}

    A_i = (r_i − mean r)/std r inside the group of a prompt (the source's part), k3 = π_ref/π − 1 − log(π_ref/π). The
    mean over tokens is taken inside each completion, then over completions. With β = 0 no reference is needed. At the
    sampling policy the gradient's coefficient at a token is A + β(π_ref/π − 1). The paper: β 0.04, groups of 64,
    learning rate 1e-6; ε is not reported.

    Where implementations differ: TRL's default is another loss (``dapo``) with β = 0, and multiplies k3 by ρ, which
    ``kl_ratio`` does here; HALOs takes the clipped ratio against the reference.
    """

    about = About(
        title="DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
        year=2024,
        arxiv="2402.03300",
        formula="-(1/G) Σ_i (1/len_i) Σ_t {min(ρ_t A_i, clip(ρ_t, 1-ε, 1+ε) A_i) - β k3_t}",
        use="Rewards that can be checked, and no memory for a critic.",
    )
    evidence = (independent("verl-project/verl", "objectives/test_policy_gradient.py"),)

    beta: float = parameter(
        0.04, "weight of the KL to the reference as a part of the loss", at_least=0, tune=Range(0.001, 0.1)
    )
    epsilon: float = parameter(0.2, "how far the ratio may move before its gradient stops", above=0, below=1)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.epsilon, self.epsilon

    def terms(self, batch: Rollouts, state: State) -> Mapping[str, Term]:
        return {"policy": Term(batch.averaged(self.clipped(batch)))}
