"""DAPO: dynamic sampling and a wider upper clip."""

from prefopt.algorithms.assembly import register_algorithm
from prefopt.core import Published, Recipe
from prefopt.rollouts import DynamicSampling

register_algorithm(
    "dapo",
    processor=DynamicSampling,
    objective="dapo",
    recipe=Recipe(
        full=1e-6,
        batch=16,
        paper=Published(
            batch=512,
            values={"epsilon_low": 0.2, "epsilon_high": 0.28, "beta": 0.0},
            source="section 4.1, as TRL's paper index reports it",
        ),
        reason="The rate is GRPO's; the batch counts prompts and suits one device.",
    ),
)
