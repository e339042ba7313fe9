from collections.abc import Mapping
from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from prefopt.core import (
    About,
    Needs,
    Objective,
    Published,
    Range,
    Ranked,
    Recipe,
    State,
    Term,
    masked_logsumexp,
    optimum,
    parameter,
    register,
)


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
    recipe = Recipe(
        full=1e-6,
        batch=64,
        paper=Published(
            rate=1e-6, batch=64, values={"beta": 0.1}, source="appendix B, for pairs, as TRL's paper index reports it"
        ),
        reason="The optimizer is AdamW with a cosine schedule; the paper uses RMSprop.",
    )
    evidence = (
        optimum(
            "π_ref exp(r/β) from Plackett–Luce rankings of subsets", "verify/test_optima.py::test_tilts_the_reference"
        ),
    )

    beta: float = parameter(0.1, "strength of the pull towards the reference", above=0, tune=Range(0.01, 0.5))

    def terms(self, batch: Ranked, state: State) -> Mapping[str, Term]:
        reward, above = self.reward(batch.completions), batch.above
        # Nothing ranks below the last completion of a group: its factor is 1.
        winners = above.any(dim=1)
        below = masked_logsumexp(reward, above[winners])
        return {"ranking": Term(-logsigmoid(reward[winners] - below), "group")}
