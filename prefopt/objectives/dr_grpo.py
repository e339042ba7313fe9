from collections.abc import Mapping
from dataclasses import dataclass

from prefopt.core import About, PolicyGradient, Rollouts, State, Term, independent, optimum, parameter, register

DEFAULT_LIMIT = 256
"""Tokens of a completion at the most where nothing else is said."""


@register("dr_grpo")
@dataclass(frozen=True, kw_only=True)
class DrGRPO(PolicyGradient):
    """GRPO done right (Liu et al. 2025, arXiv 2503.20783): neither lengths nor standard deviations as divisors.

    .. math:: L = −(1/G) Σ_i (1/M) Σ_t min(ρ_t A_i, clip(ρ_t, 1 − ε, 1 + ε) A_i),   A_i = r_i − mean r

    M is a constant, ``max_length``; as in the paper it is the limit of generation (3000 there), 256 where the loss
    stands alone.
    The expected gradient at the sampling policy is (k − 1)/k of the policy gradient, because the mean of the group
    contains the completion itself.

    Where implementations differ: TRL divides by B times the limit of generation, verl by the padded width.
    """

    about = About(
        title="Understanding R1-Zero-Like Training: A Critical Perspective",
        year=2025,
        arxiv="2503.20783",
        formula="-(1/G) Σ_i (1/M) Σ_t min(ρ_t A_i, clip(ρ_t, 1-ε, 1+ε) A_i), A_i = r_i - mean r",
        use="GRPO without its bias towards long wrong answers and towards prompts of low variance.",
    )
    evidence = (
        optimum(
            "on its own groups (k−1)/k of the gradient of E r, over M",
            "objectives/test_policy_gradient_exact.py::test_dr_grpo_is_k_minus_1_over_k_of_it",
        ),
        independent("verl-project/verl", "objectives/test_policy_gradient.py"),
    )

    epsilon: float = parameter(0.2, "how far the ratio may move before its gradient stops", above=0, below=1)
    max_length: float | None = parameter(
        None, "the constant M that the sum over tokens is divided by; by default generation's max_new_tokens", above=0
    )

    @property
    def bounds(self) -> tuple[float, float]:
        return self.epsilon, self.epsilon

    def terms(self, batch: Rollouts, state: State) -> Mapping[str, Term]:
        return {"policy": Term(batch.tokens.sum(self.clipped(batch)) / (self.max_length or DEFAULT_LIMIT))}
