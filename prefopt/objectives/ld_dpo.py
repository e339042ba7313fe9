from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
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
    independent,
    parameter,
    register,
)


@register("ld_dpo")
@dataclass(frozen=True, kw_only=True)
class LDDPO(Objective[Pairs]):
    """Length-desensitised DPO (Liu et al. 2024, arXiv 2409.06411).

    .. math::
        L = −log σ(β {[log π̂(y_w) − log π̂_ref(y_w)] − [log π̂(y_l) − log π̂_ref(y_l)]}),
        log π̂(y) = Σ_{t ≤ p} log π(y_t) + α Σ_{t > p} log π(y_t),   p = min(len_w, len_l)

    The tokens of the longer response that lie beyond the length of the shorter one count by α only. Log-probabilities
    are in nats; t and the lengths count completion tokens, so holes in the mask are passed over; a mean over pairs. The
    loss is DPO at α = 1 and for equal lengths. At π = π_ref it is log 2, if the reference is reweighted too.

    α = 0.5 is a common start; the paper chooses it per model. Whether the paper reweights π_ref as well could not be
    confirmed: ``reweight_reference=True``, the default, does so, as TRL 1.16 does; with False the reference keeps its
    full sum, as in TRL up to 0.28 and LLaMA-Factory, and the loss has a length bias of its own at π = π_ref.

    The implicit reward is that of DPO, β·(log π − log π_ref) over the whole completion: p is a property of a pair.
    """

    about = About(
        title="Length Desensitization in Direct Preference Optimization",
        year=2024,
        arxiv="2409.06411",
        formula="-log σ(β ĥ), tokens beyond min(len_w, len_l) weighted by α",
        use="Pairs of very different lengths, when answers should not grow.",
    )
    needs = Needs(batch=Pairs, reference=True, tokens=True)
    recipe = Recipe(
        full=1e-6,
        batch=64,
        reason="The paper's rate and batch could not be confirmed; these are DPO's.",
    )
    evidence = (independent("TRL 1.16", "verify/test_against_trl.py"),)

    beta: float = parameter(0.1, "strength of the pull towards the reference", above=0, tune=Range(0.01, 0.5))
    alpha: float = parameter(
        0.5, "α, weight of the tokens beyond the shorter length", at_least=0, at_most=1, tune=Range(0.1, 1.0)
    )
    reweight_reference: bool = parameter(True, "weight the reference's tokens in the same way")

    def _ratio(self, completions: Completions, public: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """log π̂ − log π̂_ref, where ``public`` is p."""
        tokens = completions.tokens
        within = tokens.mask.cumsum(dim=1) <= public[:, None]
        policy = tokens.sum(torch.where(within, tokens.logps, self.alpha * tokens.logps))
        if not self.reweight_reference:
            return policy - completions.ref_logps
        if tokens.ref_logps is None:
            raise UsageError("ld_dpo needs per-token log-probabilities of the reference, or reweight_reference=False.")
        return policy - tokens.sum(torch.where(within, tokens.ref_logps, self.alpha * tokens.ref_logps))

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        public = torch.minimum(batch.chosen.tokens.mask.sum(dim=1), batch.rejected.tokens.mask.sum(dim=1))
        margin = self._ratio(batch.chosen, public) - self._ratio(batch.rejected, public)
        return {"preference": Term(-logsigmoid(self.beta * margin))}
