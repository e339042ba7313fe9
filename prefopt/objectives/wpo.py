from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.core import (
    About,
    Batch,
    Completions,
    Needs,
    Objective,
    Pairs,
    Published,
    Range,
    Recipe,
    State,
    Term,
    UsageError,
    authors_code,
    build,
    independent,
    optimum,
    parameter,
    register,
)

_TITLE = "WPO: Enhancing RLHF with Weighted Preference Optimization"
_TOKENS = frozenset({"log_sum_p2"})


def _weights(batch: Pairs, clamp: bool) -> Float[Tensor, " n"]:
    """w(y_w) · w(y_l) of each pair, without gradient."""
    log_weight = _log_weight(batch.chosen) + _log_weight(batch.rejected)
    return (log_weight.clamp(max=0) if clamp else log_weight).exp()


def _log_weight(completions: Completions) -> Float[Tensor, " n"]:
    tokens = completions.tokens
    return (tokens.sum(tokens.logps - tokens.log_sum_p2) / completions.lengths.clamp(min=1)).detach()


@register("wpo")
@dataclass(frozen=True, kw_only=True)
class WPO(Objective[Pairs]):
    """Weighted Preference Optimization over DPO (Zhou et al. 2024, arXiv 2406.11827, eq. 2).

    .. math::
        L = w(y_w) w(y_l) · (−log σ(β h)),   h = s(y_w) − s(y_l),   s(y) = log π(y) − log π_ref(y),
        w(y) = exp{(1/len(y)) Σ_t [log π(y_t) − log Σ_v π(v|y_<t)²]}

    h is a difference of sums over completion tokens, in nats; the loss is a mean over pairs. The weights carry no
    gradient. They say how likely the policy is to write the pair itself: per token the weight is 1 on average over the
    policy's own tokens, and above 1 for a token more likely than that. With w = 1 it is DPO; at π = π_ref it is
    w(y_w) w(y_l) log 2. Any other loss on pairs takes the same weights through `wpo_weighted`.

    Paper: β = 0.01.

    Where implementations differ: ``clamp=True`` bounds the product of the two weights by 1 (the authors' code, TRL up
    to 0.28); eq. 2 and TRL 1.16 do not.
    """

    about = About(
        title=_TITLE,
        year=2024,
        arxiv="2406.11827",
        formula="w_w w_l (-log σ(β h))",
        use="Pairs written by other models, weighted as if the policy had written them.",
    )
    needs = Needs(batch=Pairs, reference=True, tokens=True, statistics=_TOKENS, detaches="the weights w(y)")
    recipe = Recipe(
        full=1e-6,
        batch=64,
        paper=Published(values={"beta": 0.01}, source="the authors' code"),
        reason="The paper's rate and batch could not be confirmed; these are DPO's.",
    )
    evidence = (
        authors_code("wzhouad/WPO", "objectives/test_ranked_fixtures.py"),
        independent("TRL 1.16", "verify/test_against_trl.py"),
    )

    beta: float = parameter(0.01, "strength of the pull towards the reference", above=0, tune=Range(0.001, 0.1))
    clamp: bool = parameter(False, "bound the product of the weights by 1, as the authors' code does")

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        return {"preference": Term(_weights(batch, self.clamp) * -logsigmoid(self.beta * batch.margin))}

    def metrics(self, batch: Pairs, state: State) -> dict[str, Tensor]:
        return {**super().metrics(batch, state), "weight": _weights(batch, self.clamp)}


@register("wpo_weighted")
@dataclass(frozen=True, kw_only=True)
class WPOWeighted(Objective[Pairs]):
    """Any other loss on pairs under WPO's weights (Zhou et al. 2024, arXiv 2406.11827).

    .. math:: L = w(y_w) w(y_l) · L_base,   w(y) = exp{(1/len(y)) Σ_t [log π(y_t) − log Σ_v π(v|y_<t)²]}

    ``base`` names the loss, with its hyperparameters in brackets: ``"simpo(beta=2.5, gamma=0.3)"``. All of its terms
    are weighted, pair by pair; its averages, state and implicit reward stay its own. The weights carry no gradient. A
    base whose rows are coupled, or whose terms are not one value per pair, is refused.

    The paper reports weights on losses other than DPO, which could not be confirmed. ``clamp`` as in `wpo`.
    """

    about = About(
        title=_TITLE,
        year=2024,
        arxiv="2406.11827",
        formula="w_w w_l L_base",
        use="WPO's weighting of off-policy pairs on a loss other than DPO.",
    )
    needs = Needs(batch=Pairs, tokens=True, statistics=_TOKENS, detaches="the weights w(y)")
    recipe = Recipe(
        full=1e-6,
        batch=64,
        reason="Rate and batch are DPO's; give those of the base if it trains otherwise.",
    )
    evidence = (optimum("WPO when its base is DPO", "verify/test_identities.py::test_sums_of_known_losses"),)

    base: str = parameter("ipo", "the loss that is weighted, as in 'simpo(beta=2.5)'")
    clamp: bool = parameter(False, "bound the product of the weights by 1, as the authors' code does")

    def __post_init__(self) -> None:
        super().__post_init__()
        needs = self.inner.needs
        if needs.batch is not Pairs or needs.coupled:
            raise UsageError(f"wpo_weighted: base={self.base!r} is not a loss of one pair at a time.")
        added = {"statistics": needs.statistics | _TOKENS, "detaches": (*needs.detaches, *type(self).needs.detaches)}
        object.__setattr__(self, "needs", replace(needs, tokens=True, **added))

    @cached_property
    def inner(self) -> Objective:
        """The objective that ``base`` names."""
        return build(self.base)

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """The implicit reward of the base."""
        return self.inner.reward(completions)

    def counts(self, batch: Batch) -> Mapping[str, int]:
        return self.inner.counts(batch)

    def init_state(self) -> dict[str, Tensor]:
        return self.inner.init_state()

    def observe(self, batch: Pairs) -> dict[str, Tensor]:
        return self.inner.observe(batch)

    def prepare(self, state: State, observed: Mapping[str, Tensor], *, frozen: bool = False) -> State:
        return self.inner.prepare(state, observed, frozen=frozen)

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        weights, terms = _weights(batch, self.clamp), self.inner.terms(batch, state)
        for name, term in terms.items():
            if term.values.shape != weights.shape:
                raise UsageError(f"wpo_weighted: the term {name!r} of {self.base!r} is not one value per pair.")
        return {name: term._replace(values=weights * term.values) for name, term in terms.items()}

    def metrics(self, batch: Pairs, state: State) -> dict[str, Tensor]:
        return {**self.inner.metrics(batch, state), "weight": _weights(batch, self.clamp)}
