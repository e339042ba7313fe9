"""Rejection sampling: imitate the best of n."""

from prefopt.algorithms.assembly import register_algorithm
from prefopt.core import About, Recipe, optimum
from prefopt.rollouts import BestOf

register_algorithm(
    "rejection_sampling",
    processor=BestOf,
    objective="sft",
    aliases=("raft", "best_of_n"),
    about=About(
        title="RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment",
        year=2023,
        arxiv="2304.06767",
        formula="-log π(y*), y* the best of n completions of π by reward",
        use="A reward that can be computed and no preference data; the most robust online start.",
    ),
    recipe=Recipe(
        full=2e-5,
        batch=16,
        reason="The paper's rate and batch could not be confirmed. The rate is that of sft; the batch counts prompts.",
    ),
    evidence=(
        optimum("the law of the best of n is F^n − F⁻^n", "objectives/test_policy_gradient_exact.py::test_best_of_n"),
    ),
)
