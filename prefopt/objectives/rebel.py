from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prefopt.core import (
    About,
    Completions,
    Needs,
    Objective,
    Pairs,
    Published,
    Range,
    Recipe,
    State,
    Term,
    authors_code,
    optimum,
    parameter,
    register,
)


@register("rebel")
@dataclass(frozen=True, kw_only=True)
class REBEL(Objective[Pairs]):
    """Regression to relative rewards (Gao et al. 2024, arXiv 2404.16767).

    .. math:: L = ((1/η) [s(y_w) − s(y_l)] − [r(y_w) − r(y_l)])²,   s(y) = log π(y) − log π_t(y)

    The reference π_t is the previous iterate, from which both responses are sampled; r are their scores,
    ``chosen_score`` and ``rejected_score``. s is a sum over completion tokens, in nats; the loss is a mean over pairs
    and the same whichever of the two is called chosen. With full coverage the minimiser is π ∝ π_t · exp(η r). At
    π = π_t it is (r_w − r_l)², with a gradient proportional to that of RLOO with two samples. Where
    η (r_w − r_l) = 1/(2τ) it is IPO up to the factor η².

    η = 1. The scaling of the paper's equation and its number could not be confirmed.

    Where implementations differ: the authors' code computes (s_w − s_l − η (r_w − r_l))², η² times this loss
    (``eta_on_rewards=True``); the two agree at η = 1.
    """

    about = About(
        title="REBEL: Reinforcement Learning via Regressing Relative Rewards",
        year=2024,
        arxiv="2404.16767",
        formula="((s_w - s_l)/η - (r_w - r_l))²",
        use="Pairs sampled from the previous policy with a reward for each; policy gradient as a regression.",
    )
    needs = Needs(batch=Pairs, reference=True, labels=("chosen_score", "rejected_score"))
    recipe = Recipe(
        full=1e-6,
        batch=64,
        paper=Published(values={"eta": 1.0}, source="the authors' code"),
        reason="The paper's rate and batch could not be confirmed; these are DPO's.",
    )
    evidence = (
        optimum("π_t exp(η r)", "verify/test_optima.py::test_tilts_the_reference"),
        authors_code("ZhaolinGao/REBEL", "objectives/test_pairwise_fixtures.py"),
    )

    eta: float = parameter(1.0, "η, step size: the optimum is π_t · exp(η r)", above=0, tune=Range(0.1, 10.0))
    eta_on_rewards: bool = parameter(False, "multiply the loss by η², as the authors' code does")

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """s(y)/η."""
        return completions.log_ratio / self.eta

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        gap = batch.chosen_score - batch.rejected_score
        residual = batch.margin - self.eta * gap if self.eta_on_rewards else batch.margin / self.eta - gap
        return {"regression": Term(residual**2)}
