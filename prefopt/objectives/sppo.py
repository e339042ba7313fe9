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
    authors_code,
    independent,
    optimum,
    parameter,
    register,
)

_ABOUT = {
    "title": "Self-Play Preference Optimization for Language Model Alignment",
    "year": 2024,
    "arxiv": "2405.00675",
}


@register("sppo_hard")
@dataclass(frozen=True, kw_only=True)
class SPPOHard(Objective[Pairs]):
    """Self-Play Preference Optimization with hard labels (Wu et al. 2024, arXiv 2405.00675).

    .. math:: L = (s(y_w) − 1/(2β))² + (s(y_l) + 1/(2β))²,   s(y) = log π(y) − log π_t(y),   β = 1/η

    The reference π_t is the previous iterate: pairs are sampled from it and judged, and it is replaced before the next
    round. s is a sum over completion tokens, in nats; the loss is a mean over pairs, quadratic, with its minimum 0 at
    s(y_w) = 1/(2β), s(y_l) = −1/(2β). At π = π_t it is 1/(2β²). It is `sppo` with win probabilities 1 and 0.

    Paper: η = 1e3, that is β = 1e-3, learning rate 5e-7 (the number of the equation could not be confirmed).

    Where implementations differ: the authors' code takes the mean of the two squares (``halve=True``); TRL, Liger and
    SamPO sum them.
    """

    about = About(
        **_ABOUT,
        formula="(s_w - 1/(2β))² + (s_l + 1/(2β))²",
        use="Rounds of self-play: pairs from the previous policy, labelled by a judge.",
    )
    needs = Needs(batch=Pairs, reference=True)
    recipe = Recipe(
        full=5e-7,
        batch=64,
        paper=Published(
            rate=5e-7, batch=64, values={"beta": 1e-3}, source="appendix C, as TRL's paper index reports it"
        ),
    )
    evidence = (
        optimum(
            "½ IPO + ½ (s_w + s_l)² (I5)", "verify/test_identities.py::test_i5_sppo_is_ipo_plus_the_square_of_the_sum"
        ),
        authors_code("uclaml/SPPO", "objectives/test_pairwise_fixtures.py"),
        independent("TRL 1.16", "verify/test_against_trl.py"),
    )

    beta: float = parameter(
        1e-3, "1/η, strength of the pull towards the previous iterate", above=0, tune=Range(1e-4, 1e-2)
    )
    halve: bool = parameter(False, "take the mean of the two squares, as the authors' code does")

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        target = 1 / (2 * self.beta)
        values = (batch.chosen.log_ratio - target) ** 2 + (batch.rejected.log_ratio + target) ** 2
        return {"preference": Term(values / 2 if self.halve else values)}


@register("sppo")
@dataclass(frozen=True, kw_only=True)
class SPPO(Objective[Pairs]):
    """Self-Play Preference Optimization (Wu et al. 2024, arXiv 2405.00675).

    .. math:: L = (s(y_w) − (P_w − ½)/β)² + (s(y_l) − (P_l − ½)/β)²,   s(y) = log π(y) − log π_t(y),   β = 1/η

    The reference π_t is the previous iterate. P_w and P_l are the probabilities that the response wins against π_t.
    ``win_rate="pair"`` knows only the probability of the pair, ``preference``, and takes P_w = preference,
    P_l = 1 − preference; ``win_rate="each"`` is the paper's estimate over several responses to the same prompt and
    reads P_w from ``chosen_score`` and P_l from ``rejected_score``. s is a sum over completion tokens, in nats; the
    loss is a mean over pairs. At π = π_t it is ((P_w − ½)² + (P_l − ½)²)/β².

    Paper: η = 1e3, that is β = 1e-3, learning rate 5e-7 (the number of the equation could not be confirmed).

    Where implementations differ: the authors' code takes the mean of the two squares (``halve=True``).
    """

    about = About(
        **_ABOUT,
        formula="(s_w - (P_w - ½)/β)² + (s_l - (P_l - ½)/β)²",
        use="Rounds of self-play, with win probabilities from a preference model.",
    )
    needs = Needs(batch=Pairs, reference=True, labels=("preference",))
    recipe = Recipe(
        full=5e-7,
        batch=64,
        paper=Published(
            rate=5e-7, batch=64, values={"beta": 1e-3}, source="appendix C, as TRL's paper index reports it"
        ),
    )
    evidence = (
        optimum("s = η (P(y ≻ π_t) − ½)", "verify/test_optima.py::test_sppo_on_its_own_samples"),
        authors_code("uclaml/SPPO", "objectives/test_pairwise_fixtures.py"),
    )

    beta: float = parameter(
        1e-3, "1/η, strength of the pull towards the previous iterate", above=0, tune=Range(1e-4, 1e-2)
    )
    win_rate: str = parameter(
        "pair", "P_w, P_l from the preference of the pair, or each from its score", choices=("pair", "each")
    )
    halve: bool = parameter(False, "take the mean of the two squares, as the authors' code does")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.win_rate == "each":
            needs = Needs(batch=Pairs, reference=True, labels=("chosen_score", "rejected_score"))
            object.__setattr__(self, "needs", needs)

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        if self.win_rate == "each":
            p_chosen, p_rejected = batch.chosen_score, batch.rejected_score
        else:
            p_chosen, p_rejected = batch.preference, 1 - batch.preference
        chosen = (batch.chosen.log_ratio - (p_chosen - 0.5) / self.beta) ** 2
        rejected = (batch.rejected.log_ratio - (p_rejected - 0.5) / self.beta) ** 2
        values = chosen + rejected
        return {"preference": Term(values / 2 if self.halve else values)}
