"""GSPO: one ratio for a whole completion."""

from prefopt.algorithms.assembly import register_algorithm
from prefopt.core import Published, Recipe
from prefopt.rollouts import GroupRelative

register_algorithm(
    "gspo",
    processor=GroupRelative,
    objective="gspo",
    recipe=Recipe(
        full=1e-6,
        batch=16,
        paper=Published(
            values={"epsilon_low": 3e-4, "epsilon_high": 4e-4, "beta": 0.0},
            source="section 5.1 of version 2, as TRL's paper index reports it",
        ),
        reason="The rate is GRPO's; the batch counts prompts and suits one device.",
    ),
)
