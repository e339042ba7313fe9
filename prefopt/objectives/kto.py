from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt.core import (
    About,
    Labelled,
    Needs,
    Objective,
    Published,
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
    sigmoid,
)


@register("kto")
@dataclass(frozen=True, kw_only=True)
class KTO(Objective[Labelled]):
    """Kahneman–Tversky Optimization (Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8).

    .. math::
        L = λ_D · (1 − σ(β (s(y) − z0)))   for a desirable y
        L = λ_U · (1 − σ(β (z0 − s(y))))   for an undesirable y

    with s(y) = log π(y) − log π_ref(y), summed over completion tokens, and the reference point z0 an estimate of
    KL(π ‖ π_ref) from *mismatched* pairs, completions of one prompt scored after another one:

    .. math:: z0 = max(0, mean over the step of [log π(y_j | x_i) − log π_ref(y_j | x_i)]),   x_i ≠ x_j

    z0 carries no gradient. It is taken over the whole optimizer step (all micro-batches, all ranks), so
    accumulation changes nothing. The loss is a mean over all rows, not over each class. At π = π_ref it is λ/2 per
    row. Called outside a trainer, a batch needs ``mismatched``; a ``state`` with a ``z0`` of one's own serves too.

    Paper: β = 0.1, λ = 1; with unequal numbers choose λ_D n_D / (λ_U n_U) between 1 and 3/2 (eq. 9).

    Where implementations differ: the paper and HALOs score y_{i+1} after x_i, TRL y_{i−1}; here the partner is drawn
    at random among rows of other prompts. HALOs divides by the number of non-zero ratios. TRL averages on each device
    and clamps after that. Liger has no λ.
    """

    about = About(
        title="KTO: Model Alignment as Prospect Theoretic Optimization",
        year=2024,
        arxiv="2402.01306",
        formula="λ_D (1 - σ(β(s - z0))) if desirable, λ_U (1 - σ(β(z0 - s))) if not",
        use="Thumbs up and thumbs down on single answers, also when one of the two is rare.",
    )
    needs = Needs(batch=Labelled, reference=True, observes="mismatched", detaches="the reference point z0")
    recipe = Recipe(
        full=5e-6,
        batch=64,
        micro_batch=8,
        paper=Published(
            rate=5e-6,
            values={"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
            source="for models of 8 billion weights",
        ),
        reason="The paper recommends batches from 8 to 128.",
    )
    evidence = (
        optimum("bang-bang in the stated direction", "verify/test_optima.py::test_kto_is_bang_bang"),
        authors_code("ContextualAI/HALOs", "verify/test_author_code.py"),
        independent("TRL 1.16", "verify/test_against_trl.py"),
    )

    beta: float = parameter(
        0.1, "strength of the pull towards the reference (risk aversion)", above=0, tune=Range(0.01, 0.5)
    )
    desirable_weight: float = parameter(1.0, "λ_D, weight of desirable rows", at_least=0)
    undesirable_weight: float = parameter(1.0, "λ_U, weight of undesirable rows", at_least=0)

    def observe(self, batch: Labelled) -> dict[str, Tensor]:
        if batch.mismatched is None:
            raise UsageError("kto needs mismatched completions (or a state with z0) to estimate its reference point.")
        return {"mismatched_log_ratio": batch.mismatched.log_ratio}

    def prepare(self, state: State, observed: Mapping[str, Tensor], *, frozen: bool = False) -> State:
        return {"z0": observed["mismatched_log_ratio"].mean().clamp(min=0)}

    def terms(self, batch: Labelled, state: State) -> Mapping[str, Term]:
        distance = self.beta * (batch.completions.log_ratio - state["z0"])
        # 1 − σ(x) is σ(−x), which does not cancel for large x.
        desirable = self.desirable_weight * sigmoid(-distance)
        undesirable = self.undesirable_weight * sigmoid(distance)
        return {"value": Term(torch.where(batch.desirable, desirable, undesirable))}

    def metrics(self, batch: Labelled, state: State) -> dict[str, Tensor]:
        return {**super().metrics(batch, state), "kl": state["z0"].reshape(1)}
