"""ReST-EM: imitate every completion above a threshold, in rounds from the start."""

from prefopt.algorithms.assembly import register_algorithm
from prefopt.core import About, Recipe
from prefopt.rollouts import AboveThreshold

register_algorithm(
    "rest_em",
    processor=AboveThreshold,
    objective="sft",
    schedule={"minibatches": 16, "restart": True},
    about=About(
        title="Beyond Human Data: Scaling Self-Training for Problem-Solving with Language Models",
        year=2023,
        arxiv="2312.06585",
        formula="-log π(y) from the start, y every completion of the round with reward ≥ τ",
        use="Answers that can be checked: right or wrong.",
    ),
    recipe=Recipe(
        full=2e-5,
        batch=16,
        schedule="constant",
        reason="The paper's rate could not be confirmed; it is that of sft. It is constant because each round "
        "begins from the start again and none may count for less.",
    ),
)
