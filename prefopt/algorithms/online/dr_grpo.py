"""Dr. GRPO: advantages that are centered on the group and not scaled."""

from prefopt.algorithms.assembly import register_algorithm
from prefopt.core import Published, Recipe, authors_code
from prefopt.rollouts import CenteredOnGroup

register_algorithm(
    "dr_grpo",
    processor=CenteredOnGroup,
    objective="dr_grpo",
    recipe=Recipe(
        full=1e-6,
        batch=16,
        paper=Published(values={"max_length": 3000, "beta": 0.0}, source="the authors' code"),
        reason="max_length is the limit of generation, as in the paper, and 256 here. "
        "The rate is GRPO's; the batch counts prompts and suits one device.",
    ),
    evidence=(
        authors_code(
            "sail-sg/understand-r1-zero, the advantages",
            "rollouts/test_advantages.py::test_group_advantages_of_verl_and_of_the_authors_of_dr_grpo",
        ),
    ),
)
