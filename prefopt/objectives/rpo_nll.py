from collections.abc import Mapping
from dataclasses import dataclass

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
    ambiguous,
    independent,
    parameter,
    register,
)


@register("rpo_nll", aliases=("dpo_nll", "irpo"))
@dataclass(frozen=True, kw_only=True)
class RPONLL(Objective[Pairs]):
    """DPO with a likelihood term, the loss of Iterative Reasoning PO (Pang et al. 2024, arXiv 2404.19733, eq. 1).

    .. math:: L = −log σ(β h) − α · log π(y_w)/len_w,   h = s(y_w) − s(y_l),   s(y) = log π(y) − log π_ref(y)

    h is a difference of sums over completion tokens, the second term a mean over the tokens of the chosen response (its
    reasoning and its answer), both in nats and means over pairs. The reference is the previous iterate. At π = π_ref
    the first term is log 2.

    Paper: α = 1, β = 0.1, learning rate 7e-7.

    Where implementations differ: ``nll="sequence"``, the default, divides by the length of each response (the paper,
    SamPO, LLaMA-Factory); ``nll="token"`` is Σ −log π(y_w) / Σ len_w over the whole step (TRL). TRL 0.9.6 multiplied
    the DPO term by `rpo_alpha`, later versions the likelihood. Two other losses are called RPO: one adds a small
    multiple of SFT as a regulariser (arXiv 2405.16436: weight 0.005, β = 0.01), the other is `reward_aware_rpo`.
    ``rpo`` alone is refused.
    """

    about = About(
        title="Iterative Reasoning Preference Optimization",
        year=2024,
        arxiv="2404.19733",
        formula="-log σ(β h) - α log π(y_w)/len_w",
        use="Pairs of reasoning traces, where the chosen one must stay likely.",
    )
    needs = Needs(batch=Pairs, reference=True, lengths=True)
    recipe = Recipe(
        full=7e-7,
        paper=Published(rate=7e-7, values={"alpha": 1.0, "beta": 0.1}, source="as reported for version 3"),
        reason="The paper's batch could not be confirmed.",
    )
    evidence = (independent("LuJunru/SamPO", "objectives/test_pairwise_fixtures.py"),)

    beta: float = parameter(0.1, "strength of the pull towards the reference", above=0, tune=Range(0.01, 0.5))
    alpha: float = parameter(1.0, "α, weight of the likelihood term", at_least=0, tune=Range(0.1, 10.0))
    nll: str = parameter("sequence", "average of the likelihood term", choices=("sequence", "token"))

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        if self.nll == "sequence":
            nll = Term(-batch.chosen.mean, weight=self.alpha)
        else:
            nll = Term(-batch.chosen.logps, "chosen_token", weight=self.alpha)
        return {"preference": Term(-logsigmoid(self.beta * batch.margin)), "nll": nll}


ambiguous("rpo", "rpo_nll", "reward_aware_rpo")
