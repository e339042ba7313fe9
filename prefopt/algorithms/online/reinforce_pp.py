"""REINFORCE++: advantages normalized over the batch."""

from prefopt.algorithms.assembly import register_algorithm
from prefopt.core import About, Recipe, independent
from prefopt.rollouts import BatchNormalized

register_algorithm(
    "reinforce_pp",
    processor=BatchNormalized,
    objective="ppo",
    about=About(
        title="REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage Normalization",
        year=2025,
        arxiv="2501.03262",
        formula="-mean_t min(ρ_t A_t, clip(ρ_t) A_t), A = (r - β Σ_{i≥t} k1_i), normalised over the batch",
        use="One sample per prompt and no critic.",
    ),
    recipe=Recipe(
        full=1e-6,
        batch=16,
        reason="The paper's rate and batch could not be confirmed; these are RLOO's.",
    ),
    evidence=(
        independent("verl-project/verl, the advantages", "rollouts/test_advantages.py::test_reinforce_pp_of_verl"),
    ),
)
