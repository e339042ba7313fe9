"""Any pairwise loss on the policy's own completions."""

from prefopt.algorithms.assembly import register_algorithm
from prefopt.core import About, Recipe
from prefopt.rollouts import BestAndWorst

register_algorithm(
    "online",
    processor=BestAndWorst,
    objective=None,
    about=About(
        title="Direct Language Model Alignment from Online AI Feedback",
        year=2024,
        arxiv="2402.04792",
        formula="any pairwise loss on the best and the worst of n completions of the policy",
        use="A reward or judge, and a pairwise loss that you trust offline.",
    ),
    recipe=Recipe(
        full=1e-6,
        batch=16,
        reason="The paper's settings could not be confirmed. The rate is DPO's; the batch counts prompts and "
        "suits one device.",
    ),
)
