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


@register("hinge", aliases=("rso_hinge", "hinge_norm"))
@dataclass(frozen=True, kw_only=True)
class Hinge(Objective[Pairs]):
    """The normalised hinge loss of RSO (Liu et al. 2023, arXiv 2309.06657, eq. 10, "hinge-norm").

    .. math:: L = max(0, 1 − γ h),   h = s(y_w) − s(y_l),   s(y) = log π(y) − log π_ref(y)

    h is a difference of sums over completion tokens, in nats; the loss is a mean over pairs. At π = π_ref it is 1.
    Beyond γh = 1 value and gradient are 0, so there is a set of minimisers instead of one. At the kink itself the
    gradient is taken as 0.

    Paper: γ = 0.05.

    Where implementations differ: "hinge" in TRL and torchtune is this loss and not SLiC-HF, which has no reference
    (`slic`). Libraries call γ "beta".
    """

    about = About(
        title="Statistical Rejection Sampling Improves Preference Optimization",
        year=2023,
        arxiv="2309.06657",
        formula="max(0, 1 - γ h)",
        use="Pairs, when a row should stop pulling once its margin is reached; the loss of RSO.",
    )
    needs = Needs(batch=Pairs, reference=True)
    recipe = Recipe(
        full=1e-6,
        batch=64,
        paper=Published(values={"gamma": 0.05}, source="as TRL's paper index reports it"),
        reason="The paper's rate and batch could not be confirmed; these are DPO's.",
    )
    evidence = (
        independent("TRL 1.16", "verify/test_against_trl.py"),
        independent("LuJunru/SamPO", "objectives/test_pairwise_fixtures.py"),
    )

    gamma: float = parameter(
        0.05, "strength of the pull towards the reference (libraries call it beta)", above=0, tune=Range(0.01, 0.5)
    )

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """γ · s(y)."""
        return self.gamma * completions.log_ratio

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        return {"preference": Term(torch.relu(1 - self.gamma * batch.margin))}
