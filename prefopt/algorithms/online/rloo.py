"""RLOO: leave-one-out baselines."""

from prefopt.algorithms.assembly import register_algorithm
from prefopt.core import About, Published, Recipe, independent, optimum
from prefopt.rollouts import LeaveOneOut

register_algorithm(
    "rloo",
    processor=LeaveOneOut,
    objective="reinforce",
    about=About(
        title="Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback",
        year=2024,
        arxiv="2402.14740",
        formula="-(1/k) Σ_i (R_i - mean_{j≠i} R_j) log π(y_i), R = r - β log(π/π_ref)",
        use="A reward model, no memory for a critic, and an unbiased gradient.",
    ),
    recipe=Recipe(
        full=1e-6,
        batch=16,
        paper=Published(
            rate=1e-6,
            batch=512,
            values={"kl_coef": 0.03, "minibatches": 2},
            source="appendix C, for TL;DR, as TRL's paper index reports it",
        ),
        reason="A batch of 16 prompts suits one device, and one step per rollout needs no correction. kl_coef "
        "lies between the paper's 0.03 for TL;DR and 0.10 for HH.",
    ),
    evidence=(
        optimum(
            "over all groups the expected gradient is that of E r − β KL",
            "objectives/test_policy_gradient_exact.py::test_rloo_is_unbiased",
        ),
        independent("verl-project/verl, the advantages", "rollouts/test_advantages.py::test_rloo_of_verl"),
    ),
)
