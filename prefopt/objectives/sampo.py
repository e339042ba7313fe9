from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
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
    TokenLogps,
    UsageError,
    authors_code,
    keyed_uniform,
    parameter,
    register,
)


@register("sampo")
@dataclass(frozen=True, kw_only=True)
class SamPO(Objective[Pairs]):
    """Down-sampled DPO (Lu et al. 2024, arXiv 2406.10957).

    .. math::
        L = −log σ(β [ŝ(y_w) − ŝ(y_l)]),   ŝ(y) = Σ_{t ∈ T(y)} [log π(y_t) − log π_ref(y_t)],
        T(y) uniform among the subsets of T_m = min(len_w, len_l) positions of y

    Sums over completion tokens, in nats; the loss is a mean over pairs. Both responses enter with the same number of
    tokens, which takes the length out of the comparison; of the shorter one all tokens count. At equal lengths it is
    DPO; at π = π_ref the loss is log 2. The implicit reward is β s(y), over all tokens.

    Positions are drawn by example id and step: the same in whatever micro-batch or on whatever rank the pair falls,
    the same for policy and reference, others at each step. Evaluation always draws the same.

    Paper: β = 0.1 is DPO's and that of the authors' code; the paper's number of the equation could not be confirmed.

    Where implementations differ: the authors' code draws inside each forward pass, so that policy and reference use
    *different* positions, and the loss at π = π_ref is not log 2.
    """

    about = About(
        title="Eliminating Biased Length Reliance of Direct Preference Optimization via Down-Sampled KL Divergence",
        year=2024,
        arxiv="2406.10957",
        formula="-log σ(β [ŝ_w - ŝ_l]), ŝ over min(len_w, len_l) random tokens",
        use="Pairs whose chosen answers are longer, when length itself should not be learnt.",
    )
    needs = Needs(batch=Pairs, reference=True, tokens=True)
    recipe = Recipe(
        full=1e-6,
        batch=64,
        paper=Published(values={"beta": 0.1}, source="the authors' code"),
        reason="The paper's rate and batch could not be confirmed; these are DPO's.",
    )
    evidence = (authors_code("LuJunru/SamPO", "objectives/test_ranked_fixtures.py"),)

    beta: float = parameter(0.1, "strength of the pull towards the reference", above=0, tune=Range(0.01, 0.5))

    def init_state(self) -> dict[str, Tensor]:
        return {"steps": torch.zeros((), dtype=torch.int64)}

    def prepare(self, state: State, observed: Mapping[str, Tensor], *, frozen: bool = False) -> State:
        if frozen:
            return {**state, "draw": torch.zeros_like(state["steps"])}
        return {"steps": state["steps"] + 1, "draw": state["steps"] + 1}

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        if batch.ids is None:
            raise UsageError("sampo draws positions by the ids of the pairs: pass ids.")
        size = torch.minimum(batch.chosen.lengths, batch.rejected.lengths)
        chosen, rejected = (
            sampled_log_ratio(part, positions(part.tokens, size, batch.ids, state["draw"], side))
            for side, part in enumerate((batch.chosen, batch.rejected))
        )
        return {"preference": Term(-logsigmoid(self.beta * (chosen - rejected)))}


def positions(
    tokens: TokenLogps, size: Int[Tensor, " n"], ids: Int[Tensor, " n"], draw: Int[Tensor, ""], side: int
) -> Bool[Tensor, " n t"]:
    """A uniform choice of ``size`` of the tokens that count in each row, which padding and holes do not change."""
    place = tokens.mask.cumsum(dim=1) - 1
    lot = keyed_uniform(ids[:, None], draw, side, place).masked_fill(~tokens.mask, 2.0)
    last = lot.sort(dim=1).values.gather(1, (size[:, None] - 1).clamp(min=0))
    return tokens.mask & (lot <= last) & (size[:, None] > 0)


def sampled_log_ratio(completions: Completions, where: Bool[Tensor, " n t"]) -> Float[Tensor, " n"]:
    """ŝ(y): the log-ratio summed over the positions chosen."""
    tokens = completions.tokens
    return torch.where(where, tokens.logps - tokens.ref_logps, 0.0).sum(dim=1)
