from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

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
    independent,
    optimum,
    parameter,
    register,
)


@register("ipo")
@dataclass(frozen=True, kw_only=True)
class IPO(Objective[Pairs]):
    """Identity Preference Optimization (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    .. math:: L = (h − 1/(2τ))²,   h = s(y_w) − s(y_l),   s(y) = log π(y) − log π_ref(y)

    h is a difference of *sums* over completion tokens, in nats; the loss is a mean over pairs. For any preference
    probability p, Bradley–Terry or not, the minimiser is π ∝ π_ref · exp(p(y ≻ μ)/τ), which is finite where DPO
    diverges. At π = π_ref the loss is 1/(4τ²).

    ``average=True`` divides each s(y) by its number of tokens:

    .. math:: L = (s(y_w)/len_w − s(y_l)/len_l − 1/(2τ))²

    Where implementations differ: libraries call τ "beta". Sum: the DPO authors' repository, OpenRLHF, NeMo-Aligner,
    and TRL's online DPO and XPO. Mean: TRL's DPO and CPO trainers, HALOs, LLaMA-Factory, ms-swift; TRL's maintainers
    report that the IPO authors asked for it, while the paper speaks of sequence probabilities and never of averaging.
    HALOs infers the length from non-zero log-ratios and so divides 0 by 0 at π = π_ref.
    """

    about = About(
        title="A General Theoretical Paradigm to Understand Learning from Human Preferences",
        year=2023,
        arxiv="2310.12036",
        formula="(h - 1/(2τ))²",
        use="Pairs whose labels are nearly deterministic, where DPO keeps pushing the margin without end.",
    )
    needs = Needs(batch=Pairs, reference=True)
    recipe = Recipe(
        full=1e-6,
        batch=64,
        paper=Published(
            rate=1e-2, batch=90, source="appendix C.1 of the published version, as TRL's paper index reports it"
        ),
        reason="The paper's rate and batch are for small bandits; for language models they are DPO's.",
    )
    evidence = (
        optimum(
            "π_ref exp(p(y ≻ μ)/τ) for preferences without a reward",
            "verify/test_optima.py::test_ipo_follows_the_win_rate_against_mu",
        ),
        independent("TRL 1.16", "verify/test_against_trl.py"),
        independent("eric-mitchell/direct-preference-optimization, ContextualAI/HALOs", "verify/test_author_code.py"),
    )

    tau: float = parameter(
        0.1, "strength of the pull towards the reference (libraries call it beta)", above=0, tune=Range(0.01, 1.0)
    )
    average: bool = parameter(False, "divide log-ratios by the number of tokens, as TRL trains it")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.average:
            # The class declares what the paper's form needs; the averaged form reads lengths as well.
            object.__setattr__(self, "needs", Needs(batch=Pairs, reference=True, lengths=True))

    def _ratio(self, completions: Completions) -> Float[Tensor, " n"]:
        ratio = completions.log_ratio
        return ratio / completions.lengths if self.average else ratio

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """τ · s(y), divided by the length with ``average``."""
        return self.tau * self._ratio(completions)

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        h = self._ratio(batch.chosen) - self._ratio(batch.rejected)
        return {"preference": Term((h - 1 / (2 * self.tau)) ** 2)}
