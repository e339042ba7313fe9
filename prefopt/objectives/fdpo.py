import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.core import (
    About,
    Completions,
    Needs,
    Objective,
    Pairs,
    Range,
    Recipe,
    State,
    Term,
    UsageError,
    authors_code,
    independent,
    optimum,
    parameter,
    register,
    register_preset,
)

_DEFAULTS = {"alpha": 0.5, "max_exponent": 80.0}
_READS = {"forward_kl": ("max_exponent",), "alpha": ("alpha", "max_exponent")}


def _unread(divergence: str) -> dict[str, float]:
    """The hyperparameters that a divergence does not read, at their defaults."""
    return {name: value for name, value in _DEFAULTS.items() if name not in _READS.get(divergence, ())}


def _expm1(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """eˣ − 1. The gradient of `torch.expm1` is its result + 1, which has no digits left for a very negative x."""
    return torch.where(x > -1, torch.expm1(x), torch.exp(x) - 1)


@register("fdpo")
@dataclass(frozen=True, kw_only=True)
class FDPO(Objective[Pairs]):
    """DPO under other divergences (Wang et al. 2023, arXiv 2309.16240, "Beyond Reverse KL").

    .. math:: L = −log σ(β [f'(u_w) − f'(u_l)]),   u = π(y)/π_ref(y) = e^{s},   s = log π(y) − log π_ref(y)

    s is a sum over completion tokens, in nats; the loss is a mean over pairs. Up to a constant, which cancels,

    ==============  ==========================================  =============================================
    ``divergence``  f'(u)                                       as evaluated (0 at π = π_ref)
    ==============  ==========================================  =============================================
    reverse_kl      log u + 1                                   s                (this is DPO)
    js              log(2u/(1 + u))                             log 2 + log σ(s) (at most log 2)
    forward_kl      −1/u                                        1 − e^{−s}
    alpha           (1 − u^{−α})/α,  0 < α < 1                  (1 − e^{−αs})/α
    ==============  ==========================================  =============================================

    Under Bradley–Terry preferences the minimiser is the optimum of E r − β D_f(π ‖ π_ref). At π = π_ref the loss is
    log 2 for every f. α → 0 is DPO, α → 1 is forward_kl. Except for reverse_kl the loss is not a function of h alone.

    Clamp: e^{−s} and e^{−αs} overflow where the policy has left the reference far behind. The exponent is cut at
    ``max_exponent`` (80, as in TRL), beyond which that completion sends no gradient. The metric ``clamped`` is the
    share of pairs in which this happened to either completion.

    Presets: ``js_dpo``, ``forward_kl_dpo``, ``alpha_div_dpo``. The paper compares divergences at β = 0.1; its α are
    0.3, 0.5 and 0.7 (these values and the numbers of the equations could not be confirmed).

    Where implementations differ: TRL since 0.29 takes f'(u) = (u^{a−1} − 1)/(a − 1), so that its a is 1 − α: the two
    agree at ½ only. TRL 0.9 to 0.28 has the paper's form with a default of 1, that is, forward_kl.
    """

    about = About(
        title="Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints",
        year=2023,
        arxiv="2309.16240",
        formula="-log σ(β[f'(u_w) - f'(u_l)]), u = π/π_ref",
        use="Pairs, to trade reward against diversity by another divergence than the reverse KL.",
    )
    needs = Needs(batch=Pairs, reference=True)
    recipe = Recipe(
        full=1e-6,
        batch=64,
        reason="The paper's rate and batch could not be confirmed; these are DPO's.",
    )
    evidence = (
        optimum("argmax E r − β D_f, for each f", "verify/test_optima.py::test_fdpo_is_the_regularised_optimum"),
        authors_code("alecwangcq/f-divergence-dpo", "objectives/test_pairwise_fixtures.py"),
        independent("TRL 1.16", "verify/test_against_trl.py"),
    )

    beta: float = parameter(0.1, "strength of the pull towards the reference", above=0, tune=Range(0.01, 0.5))
    divergence: str = parameter("js", "which f", choices=("reverse_kl", "forward_kl", "js", "alpha"))
    alpha: float = parameter(
        _DEFAULTS["alpha"], "α of the alpha divergence, in the paper's parametrisation", above=0, below=1
    )
    max_exponent: float = parameter(
        _DEFAULTS["max_exponent"], "cut of the exponent of forward_kl and alpha", above=0, at_most=80
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, default in _unread(self.divergence).items():
            value = getattr(self, name)
            if value != default:
                raise UsageError(f"fdpo: {name}={value!r} has no effect with divergence={self.divergence!r}; leave it.")

    def _exponent(self, completions: Completions) -> Float[Tensor, " n"]:
        """The exponent that may overflow, before the cut."""
        return -(self.alpha if self.divergence == "alpha" else 1.0) * completions.log_ratio

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """β · f'(u), shifted to 0 at π = π_ref."""
        if self.divergence == "reverse_kl":
            score = completions.log_ratio
        elif self.divergence == "js":
            score = math.log(2.0) + logsigmoid(completions.log_ratio)
        else:
            score = -_expm1(self._exponent(completions).clamp(max=self.max_exponent))
            if self.divergence == "alpha":
                score = score / self.alpha
        return self.beta * score

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        return {"preference": Term(-logsigmoid(self.reward(batch.chosen) - self.reward(batch.rejected)))}

    def metrics(self, batch: Pairs, state: State) -> dict[str, Tensor]:
        metrics = super().metrics(batch, state)
        if "max_exponent" in _READS.get(self.divergence, ()):
            largest = torch.maximum(self._exponent(batch.chosen), self._exponent(batch.rejected))
            metrics["clamped"] = (largest > self.max_exponent).float()
        return metrics


# The authors' code and TRL speak for `fdpo` as a whole; the optimum is checked for each divergence by itself.
_OF_EACH = FDPO.evidence[:1]
register_preset("js_dpo", "fdpo", evidence=_OF_EACH, divergence="js", **_unread("js"))
register_preset("forward_kl_dpo", "fdpo", evidence=_OF_EACH, divergence="forward_kl", **_unread("forward_kl"))
register_preset("alpha_div_dpo", "fdpo", evidence=_OF_EACH, divergence="alpha")
