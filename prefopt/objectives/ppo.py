from collections.abc import Mapping
from dataclasses import dataclass

from prefopt.core import About, PolicyGradient, Rollouts, State, Term, independent, optimum, parameter, register


@register("ppo")
@dataclass(frozen=True, kw_only=True)
class PPO(PolicyGradient):
    """The clipped surrogate of PPO (Schulman et al. 2017, arXiv 1707.06347, eq. 7), averaged over tokens.

    .. math:: L = −mean_t min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t) + β·KL,   ρ_t = π(y_t)/π_old(y_t)

    Log-probabilities at the sampling temperature, in nats; the mean is over the completion tokens of the whole step.
    The critic's part of PPO's loss is the objective ``value``; in RLHF the KL is part of the reward and β here is 0
    (InstructGPT, 2203.02155). At ρ = 1 the gradient is −A ∇log π; it is 0 where A > 0 and ρ > 1 + ε, and where A < 0
    and ρ < 1 − ε. ρ is cut at e^40.

    Where implementations differ: verl always bounds the loss for A < 0 from above (dual clip, c = 3), OpenRLHF only
    when told to; HALOs takes ε = 0.5, torchtune 0.1; TRL's approximate KL also averages over padding.
    """

    about = About(
        title="Proximal Policy Optimization Algorithms",
        year=2017,
        arxiv="1707.06347",
        formula="-mean_t min(ρ_t A_t, clip(ρ_t, 1-ε, 1+ε) A_t), with a critic for A",
        use="A reward model or function and a budget for sampling; the classic of RLHF.",
    )
    evidence = (
        optimum(
            "on its own samples the expected gradient is that of E r − β KL",
            "objectives/test_policy_gradient_exact.py::test_the_expected_gradient_at_ratio_1_is_the_policy_gradient",
        ),
        optimum(
            "followed to its end: π_ref exp(r/β), of value β log Z",
            "objectives/test_policy_gradient_exact.py::test_the_optimum_of_regularised_rl",
        ),
        independent("verl-project/verl, openai/lm-human-preferences", "objectives/test_policy_gradient.py"),
    )

    epsilon: float = parameter(0.2, "how far the ratio may move before its gradient stops", above=0, below=1)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.epsilon, self.epsilon

    def terms(self, batch: Rollouts, state: State) -> Mapping[str, Term]:
        return {"policy": Term(batch.tokens.sum(self.clipped(batch)), per="token")}
