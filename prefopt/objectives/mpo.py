from dataclasses import dataclass
from functools import cached_property

from prefopt.core import (
    About,
    Combination,
    Needs,
    Pairs,
    Part,
    Published,
    Range,
    Recipe,
    build,
    optimum,
    parameter,
    register,
)


@register("mpo")
@dataclass(frozen=True, kw_only=True)
class MPO(Combination):
    """Mixed Preference Optimization (Wang et al. 2024, arXiv 2411.10442), a weighted sum of three losses.

    .. math:: L = w_p · L_DPO + w_q · L_BCO + w_g · (−log π(y_w)/len_w)

    on pairs: `dpo` for which of two is better, `bco_pair` for how good each is, and the likelihood of the chosen
    response, in nats. Each part is what it is on its own; β is shared. BCO's shift δ is kept and checkpointed. At
    π = π_ref and δ = 0 the first two are log 2 and 2 log 2.

    Paper: weights 0.8, 0.2 and 1 (TRL's paper index). The paper's β (DPO's 0.1 stands here), whether it keeps δ, and
    how it averages the likelihood could not be confirmed: ``nll="sequence"`` divides by the length of each response,
    ``nll="token"`` is the mean over all chosen tokens of the step (TRL).

    Where implementations differ: TRL 1.16 has no δ; LLaMA-Factory mixes DPO and BCO as (DPO + γ BCO)/(1 + γ).
    """

    about = About(
        title="Enhancing the Reasoning Ability of Multimodal Large Language Models via Mixed Preference Optimization",
        year=2024,
        arxiv="2411.10442",
        formula="0.8 DPO + 0.2 BCO_pair + NLL(y_w)",
        use="Reasoning traces in pairs, where both quality and likelihood of the chosen one matter.",
    )
    needs = Needs(batch=Pairs, reference=True, lengths=True, observes="rows", detaches=("the reward shift δ",))
    recipe = Recipe(
        full=1e-6,
        batch=64,
        paper=Published(
            values={"preference_weight": 0.8, "quality_weight": 0.2, "generation_weight": 1.0},
            source="as TRL's paper index reports it",
        ),
        reason="The paper's rate and batch could not be confirmed; these are DPO's.",
    )
    evidence = (
        optimum(
            "0.8 DPO + 0.2 BCO + likelihood, each certified", "verify/test_identities.py::test_sums_of_known_losses"
        ),
    )

    beta: float = parameter(
        0.1, "strength of the pull towards the reference, in DPO and in BCO", above=0, tune=Range(0.01, 0.5)
    )
    preference_weight: float = parameter(0.8, "w_p, weight of DPO", at_least=0)
    quality_weight: float = parameter(0.2, "w_q, weight of BCO", at_least=0)
    generation_weight: float = parameter(1.0, "w_g, weight of the likelihood", at_least=0)
    nll: str = parameter("sequence", "average of the likelihood", choices=("sequence", "token"))

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        return (
            Part("dpo", self.preference_weight, build("dpo", beta=self.beta)),
            Part("bco_pair", self.quality_weight, build("bco_pair", beta=self.beta)),
            Part("sft", self.generation_weight, build("sft", average=self.nll)),
        )
