from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.core import (
    About,
    Needs,
    Objective,
    Pairs,
    Range,
    Recipe,
    State,
    Term,
    authors_code,
    divergence_terms,
    optimum,
    parameter,
    register,
    sigmoid,
)


def _kl(p: Float[Tensor, " n"], q: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """KL between two coins that show heads with probability σ(p) and σ(q)."""
    return _heads(p, q) + _heads(-p, -q)


def _heads(p: Float[Tensor, " n"], q: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    # log σ(p) − log σ(q) is −log(1 + σ(−q) (e^(q−p) − 1)), which keeps its digits where p is all but q.
    near = (q - p).abs() < 0.5
    small = torch.where(near, q - p, 0.0)
    gap = torch.where(near, -torch.log1p(sigmoid(-q) * torch.expm1(small)), logsigmoid(p) - logsigmoid(q))
    return divergence_terms(logsigmoid(p), logsigmoid(q), gap)


@register("reward_aware_rpo")
@dataclass(frozen=True, kw_only=True)
class RewardAwareRPO(Objective[Pairs]):
    """Reward-aware Preference Optimization (Nemotron-4 340B 2024, arXiv 2406.11704).

    .. math:: L = D[β h ‖ η (r(y_w) − r(y_l))],   h = s(y_w) − s(y_l),   s(y) = log π(y) − log π_ref(y)

    s is a sum over completion tokens, in nats; r are the scores of the responses, ``chosen_score`` and
    ``rejected_score``; the loss is a mean over pairs. DPO pushes every pair apart, this loss only as far as the rewards
    are apart. With a = βh and b = η(r_w − r_l), ``distance`` is

    - ``"backward_kl"``: KL(σ(b) ‖ σ(a)) = σ(b) log[σ(b)/σ(a)] + σ(−b) log[σ(−b)/σ(−a)], cross-entropy with soft labels
      up to a constant;
    - ``"forward_kl"``: KL(σ(a) ‖ σ(b));
    - ``"squared"``: (a − b)².

    Each is 0 exactly where a = b. The formulas are those of NeMo-Aligner (``rpo_bwd_kl``, ``rpo_fwd_kl``, ``rpo_sq``);
    the paper's own text, its β and η and the number of its equation could not be confirmed.

    Not to be confused with DPO plus a likelihood term, which is also called RPO (`rpo_nll`); ``rpo`` alone is refused.
    """

    about = About(
        title="Nemotron-4 340B Technical Report",
        year=2024,
        arxiv="2406.11704",
        formula="D[β h || η(r_w - r_l)]",
        use="Pairs whose two answers carry scores, when the size of the gap should count.",
    )
    needs = Needs(batch=Pairs, reference=True, labels=("chosen_score", "rejected_score"))
    recipe = Recipe(
        full=1e-6,
        batch=64,
        reason="The paper's rate and batch could not be confirmed; these are DPO's.",
    )
    evidence = (
        optimum("π_ref exp(η r/β)", "verify/test_optima.py::test_tilts_the_reference"),
        authors_code("NVIDIA/NeMo-Aligner", "objectives/test_pairwise_fixtures.py"),
    )

    beta: float = parameter(0.1, "strength of the pull towards the reference", above=0, tune=Range(0.01, 0.5))
    eta: float = parameter(1.0, "η, scale of the scores", above=0, tune=Range(0.1, 10.0))
    distance: str = parameter(
        "backward_kl", "D, distance of the two margins", choices=("backward_kl", "forward_kl", "squared")
    )

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        policy, scores = self.beta * batch.margin, self.eta * (batch.chosen_score - batch.rejected_score)
        if self.distance == "squared":
            values = (policy - scores) ** 2
        else:
            values = _kl(scores, policy) if self.distance == "backward_kl" else _kl(policy, scores)
        return {"preference": Term(values)}
