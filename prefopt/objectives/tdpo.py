from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

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
    UsageError,
    ambiguous,
    authors_code,
    parameter,
    register,
)

_TITLE = "Token-level Direct Preference Optimization"


def _kl(completions: Completions) -> Float[Tensor, " n"]:
    """K(y) = Σ_t KL(π_ref(·|y_<t) ‖ π(·|y_<t))."""
    if completions.tokens is None or completions.tokens.kl is None:
        raise UsageError("tdpo1 and tdpo2 need the per-token statistic 'kl' of every completion.")
    return completions.tokens.sum(completions.tokens.kl)


@register("tdpo1")
@dataclass(frozen=True, kw_only=True)
class TDPO1(Objective[Pairs]):
    """Token-level DPO, first form (Zeng et al. 2024, arXiv 2404.11999).

    .. math::
        L = −log σ(β [h − (K(y_l) − K(y_w))]),   h = s(y_w) − s(y_l),   s(y) = log π(y) − log π_ref(y),
        K(y) = Σ_t KL(π_ref(·|y_<t) ‖ π(·|y_<t))

    s and K are sums over completion tokens, in nats; the loss is a mean over pairs. K runs over the whole vocabulary
    (forward KL), so full logits of policy and reference are needed at the same positions, and both K carry gradient.
    At π = π_ref the loss is log 2. The implicit reward is β (s + K).

    Paper: β = 0.1. The authors' code computes this; the number of the equation could not be confirmed.
    """

    about = About(
        title=_TITLE,
        year=2024,
        arxiv="2404.11999",
        formula="-log σ(β [h - (K_l - K_w)])",
        use="Pairs, with divergence held token by token; `tdpo2` is the form that its authors recommend.",
    )
    needs = Needs(batch=Pairs, reference=True, tokens=True, statistics=frozenset({"kl"}))
    recipe = Recipe(
        full=1e-6,
        batch=64,
        paper=Published(values={"beta": 0.1}, source="the authors' code"),
        reason="The paper's rate and batch could not be confirmed; these are DPO's.",
    )
    evidence = (
        authors_code("Vance0124/Token-level-Direct-Preference-Optimization", "objectives/test_ranked_fixtures.py"),
    )

    beta: float = parameter(0.1, "strength of the pull towards the reference", above=0, tune=Range(0.01, 0.5))

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """β (s(y) + K(y))."""
        return self.beta * (completions.log_ratio + _kl(completions))

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        divergence = _kl(batch.rejected) - _kl(batch.chosen)
        return {"preference": Term(-logsigmoid(self.beta * (batch.margin - divergence)))}


@register("tdpo2")
@dataclass(frozen=True, kw_only=True)
class TDPO2(Objective[Pairs]):
    """Token-level DPO, second form (Zeng et al. 2024, arXiv 2404.11999).

    .. math::
        L = −log σ(β [h − α (K(y_l) − sg[K(y_w)])]),   h = s(y_w) − s(y_l),   s(y) = log π(y) − log π_ref(y),
        K(y) = Σ_t KL(π_ref(·|y_<t) ‖ π(·|y_<t))

    s and K are sums over completion tokens, in nats; the loss is a mean over pairs. The divergence of the chosen
    response carries no gradient (sg). With α = 0 it is DPO; with α = 1 it has the value of `tdpo1` but another
    gradient. At π = π_ref the loss is log 2. The implicit reward is β (s + α K); the authors log β (s + K).

    Paper: β = 0.1, α = 0.5. The authors' code computes this; the number of the equation could not be confirmed.
    """

    about = About(
        title=_TITLE,
        year=2024,
        arxiv="2404.11999",
        formula="-log σ(β [h - α (K_l - sg[K_w])])",
        use="Pairs, with the divergence of rejected answers held back token by token.",
    )
    needs = Needs(
        batch=Pairs, reference=True, tokens=True, statistics=frozenset({"kl"}), detaches="the divergence of y_w"
    )
    recipe = Recipe(
        full=1e-6,
        batch=64,
        paper=Published(values={"beta": 0.1, "alpha": 0.5}, source="the authors' code"),
        reason="The paper's rate and batch could not be confirmed; these are DPO's.",
    )
    evidence = (
        authors_code("Vance0124/Token-level-Direct-Preference-Optimization", "objectives/test_ranked_fixtures.py"),
    )

    beta: float = parameter(0.1, "strength of the pull towards the reference", above=0, tune=Range(0.01, 0.5))
    alpha: float = parameter(0.5, "α, weight of the difference of divergences", at_least=0, tune=Range(0.1, 2.0))

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """β (s(y) + α K(y))."""
        return self.beta * (completions.log_ratio + self.alpha * _kl(completions))

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        divergence = _kl(batch.rejected) - _kl(batch.chosen).detach()
        return {"preference": Term(-logsigmoid(self.beta * (batch.margin - self.alpha * divergence)))}


ambiguous("tdpo", "tdpo1", "tdpo2")
