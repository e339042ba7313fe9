"""GRPO: advantages relative to the group of a prompt."""

from prefopt.algorithms.assembly import register_algorithm
from prefopt.core import Published, Recipe, independent, optimum
from prefopt.rollouts import GroupRelative

register_algorithm(
    "grpo",
    processor=GroupRelative,
    objective="grpo",
    recipe=Recipe(
        full=1e-6,
        batch=16,
        paper=Published(rate=1e-6, values={"beta": 0.04}, source="as reported, with groups of 64"),
        reason="The paper's batch could not be confirmed; a batch of 16 prompts suits one device.",
    ),
    evidence=(
        optimum(
            "advantages of binary rewards have a closed form (I16)",
            "rollouts/test_advantages.py::test_i16_binary_rewards",
        ),
        independent(
            "verl-project/verl, the advantages",
            "rollouts/test_advantages.py::test_group_advantages_of_verl_and_of_the_authors_of_dr_grpo",
        ),
    ),
)
