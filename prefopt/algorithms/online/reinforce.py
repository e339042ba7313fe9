"""REINFORCE without a baseline."""

from prefopt.algorithms.assembly import register_algorithm
from prefopt.core import Recipe
from prefopt.rollouts import Plain

register_algorithm(
    "reinforce",
    processor=Plain,
    objective="reinforce",
    recipe=Recipe(
        full=1e-6,
        batch=16,
        reason="The paper is older than language models; rate and batch are RLOO's.",
    ),
)
