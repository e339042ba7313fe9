"""RSO: pairs of completions that statistical rejection sampling accepts."""

from prefopt.algorithms.assembly import register_algorithm
from prefopt.core import About, Published, Recipe, optimum
from prefopt.rollouts import StatisticalRejection

register_algorithm(
    "rso",
    processor=StatisticalRejection,
    objective="hinge",
    generation={"n": 16},
    about=About(
        title="Statistical Rejection Sampling Improves Preference Optimization",
        year=2023,
        arxiv="2309.06657",
        formula="max(0, 1 - β h) on pairs of accepted samples of π_ref",
        use="A reward model, and pairs from the policy that is optimal for it without ever sampling from it.",
    ),
    recipe=Recipe(
        full=1e-6,
        batch=16,
        paper=Published(values={"gamma": 0.05}, source="as reported, with 64 candidates"),
        reason="16 candidates cost a quarter of the paper's 64. The rate is DPO's; the batch counts prompts "
        "and suits one device.",
    ),
    evidence=(
        optimum(
            "acceptance without replacement follows its published law",
            "rollouts/test_selection.py::test_published_rejection_sampling_against_its_own_law",
        ),
    ),
)
