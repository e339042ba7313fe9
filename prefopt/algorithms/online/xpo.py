"""XPO: the policy's completions against the reference's."""

from prefopt.algorithms.assembly import register_algorithm
from prefopt.core import Published, Recipe
from prefopt.rollouts import PolicyAgainstReference

register_algorithm(
    "xpo",
    processor=PolicyAgainstReference,
    objective="xpo",
    generation={"n": 2},
    recipe=Recipe(
        full=1e-6,
        batch=16,
        paper=Published(values={"alpha": 1e-5, "beta": 0.1}, source="TRL 0.29"),
        reason="The paper's settings could not be confirmed. The rate is DPO's; the batch counts prompts and "
        "suits one device.",
    ),
)
