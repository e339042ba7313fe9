from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from prefopt.core import (
    About,
    Needs,
    Objective,
    Pairs,
    Published,
    Range,
    Recipe,
    State,
    Term,
    authors_code,
    independent,
    parameter,
    register,
    sigmoid,
)


@register("discopop", aliases=("lrml",))
@dataclass(frozen=True, kw_only=True)
class DiscoPOP(Objective[Pairs]):
    """Discovered Preference Optimization, the log-ratio modulated loss (Lu et al. 2024, arXiv 2406.08414, eq. 5).

    .. math:: L = −(1 − g) log σ(z) + g · e^{−z},   z = β h,   g = σ(z/τ)

    h = s(y_w) − s(y_l) is a difference of sums of log-ratios over completion tokens, in nats; a mean over pairs. The
    loss was found by a language model and is not convex: at τ = 0.05 it has a local minimum of 0.785924 at
    z = −0.11857 and a local maximum of 0.878290 at z = 0.07201, from where it falls to 0. At π = π_ref it is
    ½ log 2 + ½.

    g·e^{−z} is evaluated as exp(log σ(z/τ) − z), which stays finite for τ ≤ 1; above that the exponential outgrows its
    gate, and τ > 1 is refused.

    Paper: β = 0.05, τ = 0.05.

    Where implementations differ: an early form in the authors' repository has g = σ(h), without β and τ. It is this
    loss at τ = β, where the defaults are.
    """

    about = About(
        title="Discovering Preference Optimization Algorithms with and for Large Language Models",
        year=2024,
        arxiv="2406.08414",
        formula="-(1 - g) log σ(z) + g e^(-z), z = β h, g = σ(z/τ)",
        use="Pairs, as an experiment: a loss found by search, which leaves badly ordered pairs alone.",
    )
    needs = Needs(batch=Pairs, reference=True)
    recipe = Recipe(
        full=5e-7,
        batch=64,
        paper=Published(
            rate=5e-7,
            batch=64,
            values={"beta": 0.05, "tau": 0.05},
            source="appendices B.1 and E, as TRL's paper index reports it",
        ),
    )
    evidence = (
        authors_code("SakanaAI/DiscoPOP", "objectives/test_pairwise_fixtures.py"),
        independent("TRL 1.16", "verify/test_against_trl.py"),
    )

    beta: float = parameter(0.05, "strength of the pull towards the reference", above=0, tune=Range(0.01, 0.5))
    tau: float = parameter(
        0.05, "τ, temperature of the gate between the two losses", above=0, at_most=1, tune=Range(0.01, 0.5)
    )

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        z = self.beta * batch.margin
        logistic = -sigmoid(-z / self.tau) * logsigmoid(z)
        exponential = torch.exp(logsigmoid(z / self.tau) - z)
        return {"preference": Term(logistic + exponential)}
