from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prefopt.core import (
    About,
    Completions,
    Needs,
    Objective,
    Published,
    Range,
    Ranked,
    Recipe,
    State,
    Term,
    authors_code,
    parameter,
    register,
)


@register("rrhf")
@dataclass(frozen=True, kw_only=True)
class RRHF(Objective[Ranked]):
    """Rank Responses to align with Human Feedback (Yuan et al. 2023, arXiv 2304.05302).

    .. math:: L = w · Σ_{r_i < r_j} max(0, p_i − p_j) − log π(y_best),   p_i = log π(y_i) / len(y_i)^κ

    Reference-free, in nats; a mean over prompts. Only the order of the rewards is read, and there is no margin: the
    ranking part is 0, with gradient 0, as soon as the order is respected (and at p_i = p_j). Where several
    completions are best, the first in row order is imitated.

    Paper: κ = 1 and w = 1, the likelihood summed over tokens. The numbers of the equations and the sum could not be
    confirmed.

    Where implementations differ: the authors' default is w = 100, and their likelihood is a mean over *padded*
    positions; `compute_loss` also overwrites the labels before lengths are counted, so that scores are divided by the
    padded width. The nearest sound average is ``nll="token"``, Σ −log π(y_best) / Σ len over the whole step;
    ``nll="sequence"`` divides by the length of each best completion.
    """

    about = About(
        title="RRHF: Rank Responses to Align Language Models with Human Feedback without tears",
        year=2023,
        arxiv="2304.05302",
        formula="Σ_{r_i<r_j} max(0, p_i - p_j) - log π(y_best)",
        use="Scored answers from several sources, without a reference; imitates the best and orders the rest.",
    )
    needs = Needs(batch=Ranked, lengths=True)
    recipe = Recipe(
        full=8e-6,
        paper=Published(
            values={"length_exponent": 1.0, "rank_weight": 1.0},
            source="as reported; the authors' code has rank_weight 100",
        ),
        reason=(
            "The paper's rate and batch could not be confirmed; these are ORPO's, which also imitates and "
            "has no reference."
        ),
    )
    evidence = (authors_code("GanjinZero/RRHF", "objectives/test_ranked_fixtures.py"),)

    length_exponent: float = parameter(1.0, "κ, power of the length that log-probabilities are divided by", at_least=0)
    rank_weight: float = parameter(1.0, "w, weight of the ranking part", at_least=0, tune=Range(0.1, 100.0))
    nll: str = parameter("sum", "average of the likelihood part", choices=("sum", "sequence", "token"))

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """The score p = log π(y)/len(y)^κ."""
        return completions.logps / completions.lengths.to(completions.logps.dtype) ** self.length_exponent

    def terms(self, batch: Ranked, state: State) -> Mapping[str, Term]:
        score, best = self.reward(batch.completions), batch.completions[batch.best]
        # [i, j]: by how much i, which ranks above j, falls short of it.
        shortfall = torch.relu(score[None, :] - score[:, None])
        ranking = torch.where(batch.above, shortfall, 0.0).sum(dim=1)
        nll = -(best.mean if self.nll == "sequence" else best.logps)
        return {
            "ranking": Term(ranking, "group", self.rank_weight),
            "nll": Term(nll, "best_token" if self.nll == "token" else "group"),
        }
