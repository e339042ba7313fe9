from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from prefopt.core import About, Needs, Objective, Pairs, Range, State, Term, optimum, parameter, register


@register("xpo")
@dataclass(frozen=True, kw_only=True)
class XPO(Objective[Pairs]):
    """Exploratory preference optimization (Xie et al. 2024, arXiv 2405.21046): online DPO with a bonus for optimism.

    .. math:: L = −log σ(β h) + α log π(ỹ),   h = s(y_w) − s(y_l)

    Each pair is one sample of the policy and one of the reference, ranked by a reward; ỹ is the reference's, which
    ``sampled_by_reference`` tells (True where it is the chosen one). Log-probabilities are sums over completion
    tokens, in nats; the loss is a mean over pairs. α = 0 is online DPO. At π = π_ref the expected gradient of the bonus
    is 0; E_{π_ref} log π = −KL(π_ref ‖ π) − H(π_ref), so it drives the policy away from the reference.

    α 1e-5, β 0.1 as in TRL 0.29. The display of the paper itself could not be confirmed.
    """

    about = About(
        title="Exploratory Preference Optimization: Harnessing Implicit Q*-Approximation for Sample-Efficient RLHF",
        year=2024,
        arxiv="2405.21046",
        formula="-log σ(β h) + α log π(ỹ), ỹ sampled by the reference",
        use="Online pairs where the policy must be made to try what the reference hardly does.",
    )
    needs = Needs(batch=Pairs, reference=True, labels=("sampled_by_reference",))
    evidence = (
        optimum(
            "DPO minus α (KL(π_ref ‖ π) + H(π_ref)) on samples of both",
            "objectives/test_policy_gradient_exact.py::test_xpo_is_online_dpo_and_a_push_away_from_the_reference",
        ),
    )

    alpha: float = parameter(1e-5, "weight of the bonus for optimism", at_least=0, tune=Range(1e-6, 1e-3))
    beta: float = parameter(0.1, "strength of the pull towards the reference", above=0, tune=Range(0.01, 0.5))

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        explored = torch.where(batch.sampled_by_reference, batch.chosen.logps, batch.rejected.logps)
        return {
            "preference": Term(-logsigmoid(self.beta * batch.margin)),
            "optimism": Term(explored, weight=self.alpha),
        }
