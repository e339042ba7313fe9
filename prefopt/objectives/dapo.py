from collections.abc import Mapping
from dataclasses import dataclass

from prefopt.core import About, PolicyGradient, Rollouts, State, Term, independent, optimum, parameter, register


@register("dapo")
@dataclass(frozen=True, kw_only=True)
class DAPO(PolicyGradient):
    """Decoupled clip and dynamic sampling (Yu et al. 2025, arXiv 2503.14476).

    .. math:: L = −(1/Σ_i len_i) Σ_i Σ_t min(ρ_t A_i, clip(ρ_t, 1 − ε_low, 1 + ε_high) A_i)

    A_i as in GRPO, no KL. The mean is over all tokens of the step, as in the authors' code; the paper writes it over
    the tokens of one group. Groups whose rewards are all equal are replaced, and completions near the limit of
    generation are punished: that is the source's part.
    """

    about = About(
        title="DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
        year=2025,
        arxiv="2503.14476",
        formula="-(1/Σ len) Σ_i Σ_t min(ρ_t A_i, clip(ρ_t, 1-ε_low, 1+ε_high) A_i)",
        use="Long answers with checkable rewards, many groups all right or all wrong.",
    )
    evidence = (
        optimum(
            "on its own samples the expected gradient is that of E r − β KL",
            "objectives/test_policy_gradient_exact.py::test_the_expected_gradient_at_ratio_1_is_the_policy_gradient",
        ),
        independent("verl-project/verl", "objectives/test_policy_gradient.py"),
    )

    epsilon_low: float = parameter(0.2, "how far the ratio may fall before its gradient stops", above=0, below=1)
    epsilon_high: float = parameter(0.28, "how far the ratio may rise before its gradient stops", above=0)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.epsilon_low, self.epsilon_high

    def terms(self, batch: Rollouts, state: State) -> Mapping[str, Term]:
        return {"policy": Term(batch.tokens.sum(self.clipped(batch)), per="token")}
