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
    authors_code,
    independent,
    optimum,
    parameter,
    register,
)


@register("dpo", aliases=("sigmoid", "dpo_sigmoid"))
@dataclass(frozen=True, kw_only=True)
class DPO(Objective[Pairs]):
    """Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    .. math:: L = −log σ(β h),   h = [log π(y_w) − log π_ref(y_w)] − [log π(y_l) − log π_ref(y_l)]

    Log-probabilities are sums over completion tokens, in nats; the loss is a mean over pairs. Under Bradley–Terry
    preferences with full support the minimiser is π ∝ π_ref · exp(r/β). At π = π_ref the loss is log 2.

    Paper: β = 0.1 (appendix B), batch 64, learning rate 1e-6.

    Where implementations differ: the authors' code and others offer a reference-free form (π_ref taken as uniform),
    which is `cpo` without its NLL term here; label smoothing makes it another loss, `cdpo`.
    """

    about = About(
        title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        year=2023,
        arxiv="2305.18290",
        formula="-log σ(β h)",
        use="The usual first choice for pairs when a reference model is at hand.",
    )
    needs = Needs(batch=Pairs, reference=True)
    recipe = Recipe(
        full=1e-6,
        batch=64,
        paper=Published(
            rate=1e-6, batch=64, values={"beta": 0.1}, source="appendix B, as TRL's paper index reports it"
        ),
        reason="The optimizer is AdamW with a cosine schedule; the paper uses RMSprop.",
    )
    evidence = (
        optimum("π_ref exp(r/β) under Bradley–Terry", "verify/test_optima.py::test_tilts_the_reference"),
        authors_code("eric-mitchell/direct-preference-optimization", "verify/test_author_code.py"),
        independent("TRL 1.16", "verify/test_against_trl.py"),
    )

    beta: float = parameter(0.1, "strength of the pull towards the reference", above=0, tune=Range(0.01, 0.5))

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        return {"preference": Term(-logsigmoid(self.beta * batch.margin))}
