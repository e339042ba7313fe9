"""IPO on the policy's own completions."""

from prefopt.algorithms.assembly import register_algorithm
from prefopt.core import About, Recipe, optimum
from prefopt.rollouts import BestAndWorst

register_algorithm(
    "online_ipo",
    processor=BestAndWorst,
    objective="ipo",
    generation={"n": 2},
    about=About(
        title="Human Alignment of Large Language Models through Online Preference Optimisation",
        year=2024,
        arxiv="2403.08635",
        formula="(h - 1/(2τ))² on pairs of the policy's own completions",
        use="A reward or judge, without DPO's overconfidence. At n = 2 it rests at the Nash equilibrium of the "
        "regularized game; the best and the worst of more completions are another game.",
    ),
    recipe=Recipe(
        full=1e-6,
        batch=16,
        reason="The paper's settings could not be confirmed. The rate is DPO's; the batch counts prompts and "
        "suits one device.",
    ),
    evidence=(
        optimum(
            "on ordered pairs of own samples the expected gradient is that of self-play",
            "objectives/test_policy_gradient_exact.py::test_online_ipo_is_self_play",
        ),
        optimum(
            "it rests at the Nash equilibrium of the regularized game",
            "objectives/test_policy_gradient_exact.py::test_online_ipo_stands_still_at_the_nash_equilibrium",
        ),
    ),
)
