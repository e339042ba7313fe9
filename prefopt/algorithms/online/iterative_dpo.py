"""DPO in rounds, each with the previous policy as reference."""

from prefopt.algorithms.assembly import register_algorithm
from prefopt.core import About, Published, Recipe
from prefopt.rollouts import BestAndWorst

register_algorithm(
    "iterative_dpo",
    processor=BestAndWorst,
    objective="dpo",
    schedule={"minibatches": 16, "renew_reference": True},
    about=About(
        title="DPO in rounds, as in Iterative Reasoning Preference Optimization",
        year=2024,
        arxiv="2404.19733",
        formula="-log σ(β h), in rounds: sample, label, train, make the policy the reference",
        use="A reward or judge that is cheaper asked for many completions at once.",
    ),
    recipe=Recipe(
        full=1e-6,
        batch=16,
        paper=Published(rate=7e-7, values={"beta": 0.1}, source="as reported for version 3"),
        reason="The paper's rate belongs to a loss with a likelihood term, which is rpo_nll. The rate is "
        "DPO's; the batch counts prompts and suits one device.",
    ),
)
