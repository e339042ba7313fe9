from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

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
    masked_logsumexp,
    optimum,
    parameter,
    register,
)


@register("pro")
@dataclass(frozen=True, kw_only=True)
class PRO(Objective[Ranked]):
    """Preference Ranking Optimization (Song et al. 2023, arXiv 2306.17492).

    .. math::
        L = −Σ_{k<K} log [exp(m_k/T_k^k) / Σ_{i≥k} exp(m_i/T_k^i)] − λ (K−1)² log π(y_1),
        m = log π(y)/len(y),   T_k^i = 1/(ρ_k − ρ_i),   T_k^k = min_{i>k} T_k^i

    with rewards ρ_1 > … > ρ_K. Reference-free, in nats; a mean over prompts. The larger the gap of two rewards, the
    more their difference weighs; the scale of the rewards matters. For K = 2 the ranking part is −log σ(d (m_1 − m_2))
    with d = ρ_1 − ρ_2. It is evaluated with log-sum-exp.

    Paper: λ (K−1)² with λ = 0.05, as the authors' script for HH has it; the numbers of the equations could not be
    confirmed. Tied rewards, for which T is infinite, do not compete: only strictly lower ones stand in the
    denominator. Where several completions are best, the first in row order is imitated.

    Where implementations differ: the authors' code adds 1e-10 inside the logarithm, and where padding and EOS are one
    token it counts the first padding token of each right-padded row.
    """

    about = About(
        title="Preference Ranking Optimization for Human Alignment",
        year=2023,
        arxiv="2306.17492",
        formula="-Σ_k log(exp(m_k/T_k^k) / Σ_{i>=k} exp(m_i/T_k^i)) - λ (K-1)² log π(y_1)",
        use="Scored answers where the size of the gaps means something, without a reference.",
    )
    needs = Needs(batch=Ranked, lengths=True, labels=("scores",))
    recipe = Recipe(
        full=8e-6,
        paper=Published(values={"sft_weight": 0.05}, source="the authors' script for HH"),
        reason=(
            "The paper's rate and batch could not be confirmed; these are ORPO's, which also imitates and "
            "has no reference."
        ),
    )
    evidence = (
        optimum(
            "ℓ(d (m_1 − m_2)) for two responses (I11)",
            "verify/test_identities.py::test_i11_pro_of_two_is_a_logistic_loss_of_the_gap",
        ),
        authors_code("AlibabaResearch/DAMO-ConvAI", "objectives/test_ranked_fixtures.py"),
    )

    sft_weight: float = parameter(
        0.05, "λ, weight of the likelihood of the best completion", at_least=0, tune=Range(0.005, 0.5)
    )

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """Mean log-probability per token."""
        return completions.mean

    def terms(self, batch: Ranked, state: State) -> Mapping[str, Term]:
        mean, above, best = batch.completions.mean, batch.above, batch.best
        # Nothing ranks below the last completion of a group: its factor is 1.
        winners = above.any(dim=1)
        above = above[winners]
        gap = torch.where(above, batch.scores[winners, None] - batch.scores, 0.0)
        below = masked_logsumexp(gap * mean, above)
        nll = -((batch.sizes[best] - 1) ** 2) * batch.completions.logps[best]
        return {
            "ranking": Term(-logsigmoid(gap.amax(dim=1) * mean[winners] - below), "group"),
            "nll": Term(nll, "group", self.sft_weight),
        }
