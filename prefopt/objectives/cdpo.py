from collections.abc import Mapping
from dataclasses import dataclass

import torch
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
    optimum,
    parameter,
    register,
)


@register("cdpo", aliases=("conservative_dpo", "dpo_label_smoothing"))
@dataclass(frozen=True, kw_only=True)
class CDPO(Objective[Pairs]):
    """Conservative DPO, with smoothed or soft labels (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3).

    .. math:: L = −(1 − ε) log σ(β h) − ε log σ(−β h),   h = s(y_w) − s(y_l),   s(y) = log π(y) − log π_ref(y)

    Log-probabilities are sums over completion tokens, in nats; the loss is a mean over pairs. ε is the probability
    that a label is flipped. Where the batch carries ``preference``, P(y_w ≻ y_l) of each row, that probability takes
    the place of 1 − ε, and ε serves only the rows without one (``preference`` absent, or NaN in that row):

    .. math:: L = −p log σ(β h) − (1 − p) log σ(−β h)

    At π = π_ref the loss is log 2. It is strictly convex in h, with its minimum, the binary entropy of ε, at
    σ(βh) = 1 − ε: the margin stays finite where DPO pushes without end.

    The note gives no default for ε; the value here, 0.1, is a common choice (HALOs: 0.2). β = 0.1.

    Where implementations differ: `label_smoothing` of TRL's ``sigmoid`` is this loss up to 0.28 and has no effect
    since 0.29; Liger documents it for ``sigmoid`` and does not use it. torchtune and OpenRLHF honour it. Some call
    this loss "robust", which is another one (`robust_dpo`).
    """

    about = About(
        title="A note on DPO with noisy preferences and its relationship to IPO",
        year=2023,
        formula="-(1 - ε) log σ(β h) - ε log σ(-β h)",
        use="Pairs whose labels are noisy, or that several annotators or a judge labelled with a probability.",
    )
    needs = Needs(batch=Pairs, reference=True, optional=("preference",))
    recipe = Recipe(
        full=1e-6,
        batch=64,
        reason="The note gives no settings; rate and batch are DPO's.",
    )
    evidence = (
        optimum("h = logit((1−ε)p + ε(1−p))/β", "verify/test_optima.py::test_two_responses"),
        authors_code("eric-mitchell/direct-preference-optimization", "objectives/test_pairwise_fixtures.py"),
    )

    beta: float = parameter(0.1, "strength of the pull towards the reference", above=0, tune=Range(0.01, 0.5))
    label_smoothing: float = parameter(
        0.1, "ε, probability that a label is flipped, for rows without a preference", at_least=0, below=0.5
    )

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        logits = self.beta * batch.margin
        target = torch.full_like(logits, 1 - self.label_smoothing)
        if batch.preference is not None:
            target = torch.where(batch.preference.isnan(), target, batch.preference)
        # −t log σ(x) − (1 − t) log σ(−x), in which the slope −x in t would be a difference of two numbers near log 2.
        against, size = torch.where(logits > 0, 1 - target, target), torch.where(logits > 0, logits, -logits)
        return {"preference": Term(against * size - logsigmoid(size))}
