"""PPO with a critic, as RLHF uses it."""

from prefopt.algorithms.assembly import register_algorithm
from prefopt.core import About, Published, Recipe, independent, optimum
from prefopt.rollouts import Gae

register_algorithm(
    "ppo",
    processor=Gae,
    objective="ppo",
    schedule={"passes": 4},
    critic=True,
    about=About(
        title="Training language models to follow instructions with human feedback (PPO)",
        year=2022,
        arxiv="2203.02155",
        formula="-mean_t min(ρ_t A_t, clip(ρ_t, 1-ε, 1+ε) A_t), A from a critic, -β KL in the reward",
        use="A reward model and a budget for sampling; the classic of RLHF.",
    ),
    recipe=Recipe(
        full=1e-6,
        batch=16,
        paper=Published(
            rate=5e-6,
            values={
                "kl_coef": 0.15,
                "gamma": 1.0,
                "lam": 0.95,
                "epsilon": 0.2,
                "epsilon_value": 0.2,
                "vf_coef": 0.1,
                "passes": 4,
            },
            source="OpenAI's code and released runs for arXiv 1909.08593",
        ),
        reason="OpenAI's rate belongs to GPT-2, and its kl_coef is adaptive; rate and batch are those of the "
        "group methods.",
    ),
    evidence=(
        optimum(
            "the shaped rewards sum to the score minus β times the log-ratio (I18)",
            "rollouts/test_advantages.py::test_i18_the_shaped_rewards_sum_to_score_minus_beta_log_ratio",
        ),
        independent("verl-project/verl, the advantages", "rollouts/test_advantages.py::test_gae_of_verl"),
    ),
)
