"""CISPO: clipped importance weights."""

from prefopt.algorithms.assembly import register_algorithm
from prefopt.core import Recipe
from prefopt.rollouts import GroupRelative

register_algorithm(
    "cispo",
    processor=GroupRelative,
    objective="cispo",
    recipe=Recipe(
        full=1e-6,
        batch=16,
        reason="The paper does not report its bound, which is ScaleRL's. The rate is GRPO's; the batch counts "
        "prompts and suits one device.",
    ),
)
