from collections.abc import Mapping
from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from prefopt.core import About, Needs, Objective, Ranked, State, Term, masked_logsumexp, parameter, register


@register("dpo_pl", aliases=("plackett_luce_dpo",))
@dataclass(frozen=True, kw_only=True)
class DPOPlackettLuce(Objective[Ranked]):
    """DPO on rankings, by the Plackett–Luce model (Rafailov et al. 2023, arXiv 2305.18290, appendix).

    .. math:: L = −Σ_{k<K} log [exp(β s_k) / Σ_{j≥k} exp(β s_j)],   y_1 ≻ … ≻ y_K,   s(y) = log π(y) − log π_ref(y)

    s is a sum over completion tokens, in nats; the loss is a mean over prompts, whose groups may differ in K. For K = 2
    it is DPO. At π = π_ref it is log K!. Adding a constant to every s of a prompt changes nothing. On Plackett–Luce
    data with full support the minimiser is π ∝ π_ref · exp(r/β).

    Paper: β = 0.1. The form is the Plackett–Luce likelihood; the appendix and its equation could not be confirmed. It
    does not speak of ties: here tied completions do not compete, so y_k is compared with itself and what ranks
    strictly below it.
    """

    about = About(
        title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        year=2023,
        arxiv="2305.18290",
        formula="-Σ_k log(exp(β s_k) / Σ_{j>=k} exp(β s_j))",
        use="Whole rankings of several answers to one prompt.",
    )
    needs = Needs(batch=Ranked, reference=True)

    beta: float = parameter(0.1, "strength of the pull towards the reference", above=0)

    def terms(self, batch: Ranked, state: State) -> Mapping[str, Term]:
        reward, above = self.reward(batch.completions), batch.above
        # Nothing ranks below the last completion of a group: its factor is 1.
        winners = above.any(dim=1)
        below = masked_logsumexp(reward, above[winners])
        return {"ranking": Term(-logsigmoid(reward[winners] - below), "group")}
