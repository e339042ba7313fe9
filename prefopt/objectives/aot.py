from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

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
    ambiguous,
    independent,
    parameter,
    register,
)

_ABOUT = {
    "title": "Distributional Preference Alignment of LLMs via Optimal Transport",
    "year": 2024,
    "arxiv": "2406.05882",
}


def _smoothed(logits: Float[Tensor, " n"], epsilon: float) -> Float[Tensor, " n"]:
    return -(1 - epsilon) * logsigmoid(logits) - epsilon * logsigmoid(-logits)


@register("aot_paired")
@dataclass(frozen=True, kw_only=True)
class AOTPaired(Objective[Pairs]):
    """Alignment via Optimal Transport, paired (Melnyk et al. 2024, arXiv 2406.05882).

    .. math::
        L = mean_i −(1 − ε) log σ(β (a_(i) − b_(i))) − ε log σ(−β (a_(i) − b_(i))),
        a = log π(y_w) − log π(y_l),   b = log π_ref(y_w) − log π_ref(y_l)

    where a_(i) and b_(i) are the i-th smallest of the batch: the distribution of the policy's margins is made to
    dominate that of the reference, instead of each margin its own. Log-probabilities are sums over completion tokens,
    in nats. Values come in sorted order. The loss never exceeds the mean of `cdpo` on the same pairs, and equals it
    for a batch of one; at π = π_ref it is log 2.

    Rows are coupled: the sort is over the pairs of one micro-batch (so on several devices it is per device, and it
    cannot be accumulated). Gradient flows through the sorted values.

    β = 0.01 (TRL's paper index); no smoothing. Formulas are those of TRL; the paper's own could not be confirmed.

    Where implementations differ: TRL called this loss ``aot`` and the unpaired one ``aot_pair`` until 0.28. ``aot``
    and ``aot_pair`` name two losses and are refused.
    """

    about = About(
        **_ABOUT,
        formula="-log σ(β(a_(i) - b_(i))), a = log π(y_w)/π(y_l), b = the same of π_ref, each sorted",
        use="Pairs, when the whole distribution of margins should improve rather than every single one.",
    )
    needs = Needs(batch=Pairs, reference=True, coupled=True)
    recipe = Recipe(
        full=1e-6,
        batch=16,
        micro_batch=16,
        paper=Published(values={"beta": 0.01}, source="as TRL's paper index reports it"),
        reason="A step is one forward pass, because its pairs are sorted together; the rate is DPO's.",
    )
    evidence = (independent("TRL 1.16", "verify/test_against_trl.py"),)

    beta: float = parameter(0.01, "strength of the pull towards the reference", above=0, tune=Range(0.001, 0.1))
    label_smoothing: float = parameter(0.0, "ε, probability that a label is flipped", at_least=0, below=0.5)

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        policy = (batch.chosen.logps - batch.rejected.logps).sort().values
        reference = (batch.chosen.ref_logps - batch.rejected.ref_logps).sort().values
        return {"preference": Term(_smoothed(self.beta * (policy - reference), self.label_smoothing))}


@register("aot_unpaired")
@dataclass(frozen=True, kw_only=True)
class AOTUnpaired(Objective[Pairs]):
    """Alignment via Optimal Transport, unpaired (Melnyk et al. 2024, arXiv 2406.05882).

    .. math::
        L = mean_i −(1 − ε) log σ(β d_(i)) − ε log σ(−β d_(i)),   d_(i) = s(y_w)_(i) − s(y_l)_(i),
        s(y) = log π(y) − log π_ref(y)

    where s(·)_(i) is the i-th smallest of the batch: the log-ratios of chosen responses are made to dominate those of
    rejected ones as distributions; which chosen response belongs to which rejected one does not matter. s is a sum
    over completion tokens, in nats. Values come in sorted order. The loss never exceeds the mean of `cdpo` on the same
    pairs, and equals it for a batch of one; at π = π_ref it is log 2.

    Rows are coupled: the sort is over one micro-batch (so on several devices it is per device, and it cannot be
    accumulated). Gradient flows through the sorted values. A batch holds as many chosen as rejected responses;
    unequal groups would need interpolated quantiles, whose treatment in the paper could not be confirmed.

    β = 0.01 (TRL's paper index); no smoothing. Formulas are those of TRL; the paper's own could not be confirmed.

    Where implementations differ: TRL called this loss ``aot_pair`` until 0.28. ``aot`` and ``aot_pair`` name two
    losses and are refused.
    """

    about = About(
        **_ABOUT,
        formula="-log σ(β(s_w,(i) - s_l,(i))), both sorted",
        use="Good and bad answers that do not belong to the same prompts pair by pair.",
    )
    needs = Needs(batch=Pairs, reference=True, coupled=True)
    recipe = Recipe(
        full=1e-6,
        batch=16,
        micro_batch=16,
        paper=Published(values={"beta": 0.01}, source="as TRL's paper index reports it"),
        reason="A step is one forward pass, because its pairs are sorted together; the rate is DPO's.",
    )
    evidence = (independent("TRL 1.16", "verify/test_against_trl.py"),)

    beta: float = parameter(0.01, "strength of the pull towards the reference", above=0, tune=Range(0.001, 0.1))
    label_smoothing: float = parameter(0.0, "ε, probability that a label is flipped", at_least=0, below=0.5)

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        chosen, rejected = batch.chosen.log_ratio.sort().values, batch.rejected.log_ratio.sort().values
        return {"preference": Term(_smoothed(self.beta * (chosen - rejected), self.label_smoothing))}


ambiguous("aot", "aot_paired", "aot_unpaired")
ambiguous("aot_pair", "aot_paired", "aot_unpaired")
