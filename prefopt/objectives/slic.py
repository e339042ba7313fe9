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


@register("slic", aliases=("slic_hf",))
@dataclass(frozen=True, kw_only=True)
class SLiC(Objective[Pairs]):
    """Sequence Likelihood Calibration with human feedback (Zhao et al. 2023, arXiv 2305.10425; eq. 1 of RSO).

    .. math:: L = max(0, δ − log π(y_w) + log π(y_l)) − λ log π(y_ref)

    Reference-free: y_ref is not a reference model but a supervised target. Pairs carry none, so the chosen completion
    stands in for it, as in HALOs; for targets of their own, use ``lam=0`` together with `sft` on those. Both terms
    take sums over completion tokens, in nats, and are means over pairs. At log π(y_w) = log π(y_l) the first term is
    δ; beyond a margin of δ its gradient is 0, at the kink itself it is taken as 0.

    RSO's hinge without normalisation and this loss correspond by δ = 1/γ. Paper: learning rate 1e-4, batch 512 (as
    TRL's paper index reports them). δ = 1 and λ = 0.1 are the values of HALOs; the paper's could not be confirmed.

    Where implementations differ: HALOs calls the two beta and lambda_coef, and adds a matrix of per-token NLL to the
    vector of hinge losses, which has a meaning only for a batch of one and there averages the NLL over tokens. What
    TRL and torchtune call "hinge" is RSO's loss (`hinge`).
    """

    about = About(
        title="SLiC-HF: Sequence Likelihood Calibration with Human Feedback",
        year=2023,
        arxiv="2305.10425",
        formula="max(0, δ - log π(y_w) + log π(y_l)) - λ log π(y_w)",
        use="Pairs without a reference model, where likelihoods need only be ordered with a margin.",
    )
    needs = Needs(batch=Pairs)
    recipe = Recipe(
        full=1e-6,
        batch=64,
        paper=Published(
            rate=1e-4, batch=512, source="section 3.2 of the published version, as TRL's paper index reports it"
        ),
        reason="The paper's rate belongs to another kind of model and optimizer; rate and batch are DPO's.",
    )
    evidence = (independent("ContextualAI/HALOs", "objectives/test_pairwise_fixtures.py"),)

    delta: float = parameter(
        1.0, "δ, margin between the two log-probabilities, in nats", above=0, tune=Range(0.1, 10.0)
    )
    lam: float = parameter(0.1, "λ, weight of the supervised term", at_least=0, tune=Range(0.01, 1.0))

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """log π(y), which the loss calibrates."""
        return completions.logps

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        chosen, rejected = batch.chosen.logps, batch.rejected.logps
        return {
            "preference": Term(torch.relu(self.delta - chosen + rejected)),
            "nll": Term(-chosen, weight=self.lam),
        }
