from collections.abc import Mapping
from dataclasses import dataclass

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
    optimum,
    parameter,
    register,
    sigmoid,
)

_ABOUT = {
    "title": "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment",
    "year": 2024,
    "arxiv": "2408.06266",
}


@register("apo_zero")
@dataclass(frozen=True, kw_only=True)
class APOZero(Objective[Pairs]):
    """Anchored Preference Optimization, zero (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7).

    .. math:: L = [1 − σ(β s(y_w))] + σ(β s(y_l)),   s(y) = log π(y) − log π_ref(y)

    s is a sum over completion tokens, in nats; the loss is a mean over pairs and lies in [0, 2]. It raises the
    likelihood of the chosen response and lowers that of the rejected one, each against its own anchor. At π = π_ref it
    is 1 with gradient −β/4 in s(y_w) and +β/4 in s(y_l). It is twice `kto` with z0 = 0 and λ = 1 on the same pairs.

    Paper: β = 0.1, learning rate 2e-7, batch 64 (as TRL's paper index reports them). The additive constant of the
    paper's equation could not be confirmed; gradients do not depend on it. The authors point to TRL for code.

    ``apo`` alone names two losses and is refused.
    """

    about = About(
        **_ABOUT,
        formula="[1 - σ(β s_w)] + σ(β s_l)",
        use="Pairs whose chosen answers are better than what the model would write.",
    )
    needs = Needs(batch=Pairs, reference=True)
    recipe = Recipe(
        full=2e-7,
        batch=64,
        paper=Published(
            rate=2e-7,
            batch=64,
            values={"beta": 0.1},
            source="section 5.2 and appendix B.1, as TRL's paper index reports it",
        ),
    )
    evidence = (
        optimum("bang-bang in the stated direction", "verify/test_optima.py::test_apo_zero_is_bang_bang"),
        independent("TRL 1.16", "verify/test_against_trl.py"),
    )

    beta: float = parameter(0.1, "strength of the pull towards the reference", above=0, tune=Range(0.01, 0.5))

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        # 1 − σ(x) is σ(−x), which does not cancel for large x.
        chosen, rejected = self.reward(batch.chosen), self.reward(batch.rejected)
        return {"preference": Term(sigmoid(-chosen) + sigmoid(rejected))}


@register("apo_down")
@dataclass(frozen=True, kw_only=True)
class APODown(Objective[Pairs]):
    """Anchored Preference Optimization, down (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8).

    .. math:: L = σ(β s(y_w)) + [1 − σ(β (s(y_w) − s(y_l)))],   s(y) = log π(y) − log π_ref(y)

    s is a sum over completion tokens, in nats; the loss is a mean over pairs and lies in [0, 2]. It lowers the
    likelihood of both responses, that of the rejected one more. At π = π_ref it is 1 with gradient 0 in s(y_w) and
    +β/4 in s(y_l).

    Paper: β = 0.1, learning rate 2e-7, batch 64 (as TRL's paper index reports them). The additive constant of the
    paper's equation could not be confirmed; gradients do not depend on it. The authors point to TRL for code.

    ``apo`` alone names two losses and is refused.
    """

    about = About(
        **_ABOUT,
        formula="σ(β s_w) + [1 - σ(β h)]",
        use="Pairs whose chosen answers are worse than what the model would write.",
    )
    needs = Needs(batch=Pairs, reference=True)
    recipe = Recipe(
        full=2e-7,
        batch=64,
        paper=Published(
            rate=2e-7,
            batch=64,
            values={"beta": 0.1},
            source="section 5.2 and appendix B.1, as TRL's paper index reports it",
        ),
    )
    evidence = (independent("TRL 1.16", "verify/test_against_trl.py"),)

    beta: float = parameter(0.1, "strength of the pull towards the reference", above=0, tune=Range(0.01, 0.5))

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        return {"preference": Term(sigmoid(self.reward(batch.chosen)) + sigmoid(-self.beta * batch.margin))}


ambiguous("apo", "apo_zero", "apo_down")
