"""Nash-MD: the policy against a mixture of itself and the reference."""

from prefopt.algorithms.assembly import register_algorithm
from prefopt.core import About, Published, Recipe, optimum
from prefopt.rollouts import AgainstMixture

register_algorithm(
    "nash_md",
    processor=AgainstMixture,
    objective="reinforce",
    generation={"n": 2},
    about=About(
        title="Nash Learning from Human Feedback",
        year=2023,
        arxiv="2312.00886",
        formula="-E[log π(y) (P(y≻y') - ½ - τ log π(y)/π_ref(y))], y' from a mixture of π and π_ref",
        use="Play against a mixture with the reference. P(y≻y') is σ(r - r') of the rewards.",
    ),
    recipe=Recipe(
        full=1e-6,
        batch=16,
        paper=Published(values={"mixture": 0.125}, source="a later paper of the authors"),
        reason="The paper's rate and batch could not be confirmed; these are RLOO's.",
    ),
    evidence=(
        optimum(
            "the expected gradient begins a step of mirror descent",
            "objectives/test_policy_gradient_exact.py::test_nash_md_begins_a_step_of_mirror_descent",
        ),
        optimum(
            "its iterates obey the published bound",
            "objectives/test_policy_gradient_exact.py::test_the_iterates_of_nash_md_obey_the_published_bound",
        ),
    ),
)
