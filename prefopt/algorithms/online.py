"""The named online algorithms: a source of examples, the objective that learns from them, and a plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from prefopt.core.needs import About
from prefopt.core.settings import check_parameter, parameter
from prefopt.objectives import get_objective
from prefopt.rollouts.credit import (
    AgainstMixture,
    BatchNormalised,
    CentredOnGroup,
    DynamicSampling,
    Gae,
    GroupRelative,
    LeaveOneOut,
    Plain,
)
from prefopt.rollouts.rollout import Source
from prefopt.rollouts.selection import (
    AboveThreshold,
    BestAndWorst,
    BestOf,
    PolicyAgainstReference,
    StatisticalRejection,
)


@dataclass(frozen=True, kw_only=True)
class CriticSettings:
    """What the critic is, and how it is trained. Its loss is the objective ``value``."""

    critic: str = parameter(
        "auto",
        "head (on the policy's own hidden states), adapter (of its own on the same base), model (weights of its own); "
        "auto is an adapter beside an adapter, a model beside a model",
        choices=("auto", "head", "adapter", "model"),
    )
    critic_rate: float = parameter(1.0, "its learning rate as a multiple of the policy's", above=0)
    vf_coef: float = parameter(0.1, "weight of its loss", above=0)
    epsilon_value: float = parameter(0.2, "how far a value may move from the one at sampling time", above=0)

    def __post_init__(self) -> None:
        for one in fields(self):
            check_parameter("critic", one, getattr(self, one.name))


@dataclass(frozen=True, kw_only=True)
class Online:
    """An online algorithm.

    Attributes:
        source: makes examples of what was sampled.
        objective: the loss on them, as text; None where the user names a pairwise one.
        about: where it comes from.
        plan: fields of `Plan` that are not at their defaults.
        critic: whether it has one.
        generation: defaults of `GenerationSettings`.
        aliases: other names for the very same thing.
    """

    source: type[Source]
    objective: str | None
    about: About
    plan: Mapping[str, Any] = field(default_factory=dict)
    critic: bool = False
    generation: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()


def _of(objective: str) -> About:
    """The paper is that of the objective."""
    return get_objective(objective).about


@cache
def online_algorithms() -> dict[str, Online]:
    """All of them by name."""
    return {
        "ppo": Online(
            source=Gae,
            objective="ppo",
            about=About(
                title="Training language models to follow instructions with human feedback (PPO)",
                year=2022,
                arxiv="2203.02155",
                formula="-mean_t min(ρ_t A_t, clip(ρ_t, 1-ε, 1+ε) A_t), A from a critic, -β KL in the reward",
                use="A reward model and a budget for sampling; the classic of RLHF.",
            ),
            plan={"passes": 4},
            critic=True,
        ),
        "rloo": Online(
            source=LeaveOneOut,
            objective="reinforce",
            about=About(
                title="Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback",
                year=2024,
                arxiv="2402.14740",
                formula="-(1/k) Σ_i (R_i - mean_{j≠i} R_j) log π(y_i), R = r - β log(π/π_ref)",
                use="A reward model, no memory for a critic, and an unbiased gradient.",
            ),
        ),
        "reinforce": Online(source=Plain, objective="reinforce", about=_of("reinforce")),
        "reinforce_pp": Online(
            source=BatchNormalised,
            objective="ppo",
            about=About(
                title="REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage Normalization",
                year=2025,
                arxiv="2501.03262",
                formula="-mean_t min(ρ_t A_t, clip(ρ_t) A_t), A = (r - β Σ_{i≥t} k1_i), normalised over the batch",
                use="One sample per prompt and no critic.",
            ),
        ),
        "grpo": Online(source=GroupRelative, objective="grpo", about=_of("grpo")),
        "dr_grpo": Online(source=CentredOnGroup, objective="dr_grpo", about=_of("dr_grpo")),
        "dapo": Online(source=DynamicSampling, objective="dapo", about=_of("dapo")),
        "gspo": Online(source=GroupRelative, objective="gspo", about=_of("gspo")),
        "cispo": Online(source=GroupRelative, objective="cispo", about=_of("cispo")),
        "online": Online(
            source=BestAndWorst,
            objective=None,
            about=About(
                title="Direct Language Model Alignment from Online AI Feedback",
                year=2024,
                arxiv="2402.04792",
                formula="any pairwise loss on the best and the worst of n completions of the policy",
                use="A reward or judge, and a pairwise loss that you trust offline.",
            ),
        ),
        "online_dpo": Online(
            source=BestAndWorst,
            objective="dpo",
            about=About(
                title="Direct Language Model Alignment from Online AI Feedback",
                year=2024,
                arxiv="2402.04792",
                formula="-log σ(β h) on the best and the worst of n completions of the policy",
                use="A reward or judge; DPO without stale data.",
            ),
            aliases=("oaif",),
        ),
        "online_ipo": Online(
            source=BestAndWorst,
            objective="ipo",
            about=About(
                title="Human Alignment of Large Language Models through Online Preference Optimisation",
                year=2024,
                arxiv="2403.08635",
                formula="(h - 1/(2τ))² on pairs of the policy's own completions",
                use="Preferences that no reward explains; its rest point is a Nash equilibrium.",
            ),
        ),
        "iterative_dpo": Online(
            source=BestAndWorst,
            objective="dpo",
            about=About(
                title="DPO in rounds, as in Iterative Reasoning Preference Optimization",
                year=2024,
                arxiv="2404.19733",
                formula="-log σ(β h), in rounds: sample, label, train, make the policy the reference",
                use="A reward or judge that is cheaper asked for many completions at once.",
            ),
            plan={"minibatches": 16, "renew_reference": True},
        ),
        "xpo": Online(
            source=PolicyAgainstReference,
            objective="xpo",
            about=_of("xpo"),
            generation={"n": 2},
        ),
        "nash_md": Online(
            source=AgainstMixture,
            objective="reinforce",
            about=About(
                title="Nash Learning from Human Feedback",
                year=2023,
                arxiv="2312.00886",
                formula="-E[log π(y) (P(y≻y') - ½ - τ log π(y)/π_ref(y))], y' from a mixture of π and π_ref",
                use="Preferences that are not transitive.",
            ),
            generation={"n": 2},
        ),
        "rejection_sampling": Online(
            source=BestOf,
            objective="sft",
            aliases=("raft", "best_of_n"),
            about=About(
                title="RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment",
                year=2023,
                arxiv="2304.06767",
                formula="-log π(y*), y* the best of n completions of π by reward",
                use="A reward that can be computed and no preference data; the most robust online start.",
            ),
        ),
        "rso": Online(
            source=StatisticalRejection,
            objective="hinge",
            about=About(
                title="Statistical Rejection Sampling Improves Preference Optimization",
                year=2023,
                arxiv="2309.06657",
                formula="max(0, 1 - β h) on pairs of accepted samples of π_ref",
                use="A reward model, and pairs from the policy that is optimal for it without ever sampling from it.",
            ),
            generation={"n": 16},
        ),
        "rest_em": Online(
            source=AboveThreshold,
            objective="sft",
            about=About(
                title="Beyond Human Data: Scaling Self-Training for Problem-Solving with Language Models",
                year=2023,
                arxiv="2312.06585",
                formula="-log π(y) from the start, y every completion of the round with reward ≥ τ",
                use="Answers that can be checked: right or wrong.",
            ),
            plan={"minibatches": 16, "restart": True},
        ),
    }
