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
    independent,
    parameter,
    register,
)


@register("dpop", aliases=("dpo_positive", "smaug"))
@dataclass(frozen=True, kw_only=True)
class DPOP(Objective[Pairs]):
    """DPO-Positive, the loss of Smaug (Pal et al. 2024, arXiv 2402.13228, eq. 3).

    .. math:: L = −log σ(β [h − λ · max(0, −s(y_w))]),   h = s(y_w) − s(y_l),   s(y) = log π(y) − log π_ref(y)

    s is a sum over completion tokens, in nats; the loss is a mean over pairs. The penalty sets in when the chosen
    response has become less likely than under the reference, and multiplies its pull by 1 + λ. The loss is never below
    DPO's, and equals it where s(y_w) ≥ 0. At π = π_ref it is log 2; there lies the kink, at which half of the penalty's
    gradient is taken (the choice of `torch.maximum`, as in SamPO's code).

    Paper: β = 0.3, λ = 50, and about the same for 5 and 500 (as an independent implementation reports them).

    Where implementations differ: adding λ·max(0, −s(y_w)) outside of the log-sigmoid is another loss.
    """

    about = About(
        title="Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive",
        year=2024,
        arxiv="2402.13228",
        formula="-log σ(β[h - λ max(0, -s_w)])",
        use="Pairs that differ in few tokens, where DPO makes the chosen answer less likely.",
    )
    needs = Needs(batch=Pairs, reference=True)
    recipe = Recipe(
        full=1e-6,
        batch=64,
        paper=Published(values={"beta": 0.3, "lam": 50.0}, source="as an independent implementation reports them"),
        reason="The paper's rate and batch could not be confirmed; these are DPO's.",
    )
    evidence = (independent("LuJunru/SamPO", "objectives/test_pairwise_fixtures.py"),)

    beta: float = parameter(0.3, "strength of the pull towards the reference", above=0, tune=Range(0.03, 1.0))
    lam: float = parameter(
        50.0,
        "λ, penalty on a chosen response that became less likely",
        at_least=0,
        tune=Range(5.0, 500.0, "the paper, as an independent implementation reports it"),
    )

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        fall = -batch.chosen.log_ratio
        penalty = self.lam * torch.maximum(fall, torch.zeros_like(fall))
        return {"preference": Term(-logsigmoid(self.beta * (batch.margin - penalty)))}
