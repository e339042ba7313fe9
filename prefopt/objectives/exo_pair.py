import math
from collections.abc import Mapping
from dataclasses import dataclass

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
    authors_code,
    independent,
    optimum,
    parameter,
    register,
    sigmoid,
)


@register("exo_pair")
@dataclass(frozen=True, kw_only=True)
class EXOPair(Objective[Pairs]):
    """Efficient Exact Optimization on pairs (Ji et al. 2024, arXiv 2402.00856, eq. 16).

    .. math:: L = σ(z) [log σ(z) − log(1 − ε)] + σ(−z) [log σ(−z) − log ε],   z = β (s(y_w) − s(y_l))

    with s(y) = log π(y) − log π_ref(y) summed over completion tokens, in nats; a mean over pairs. This is the
    divergence KL((σ(z), σ(−z)) ‖ (1 − ε, ε)): never negative, and 0 exactly at z = log((1 − ε)/ε). `cdpo` has the same
    stationary point and is, up to a constant, the KL of the other direction. Not convex. At π = π_ref the loss is
    −log 2 − ½ log(ε(1 − ε)), 2.761231 for ε = 0.001.

    Paper: β_π = 0.1 (IMDB), 0.5 (HH) in the authors' scripts; ε = 1e-3 is TRL's default, ε > 0 is required.

    Where implementations differ: the authors use log-targets (0, −10) in place of (log(1 − ε), log ε), which are not
    normalised: ``normalised=False`` with ε = e^−10 (the loss is lower by −σ(z) log(1 − ε) and may be slightly
    negative). Older TRL replaced ε = 0 by 1e-3 silently, TRL 1.16 refuses it.
    """

    about = About(
        title="Towards Efficient Exact Optimization of Language Model Alignment",
        year=2024,
        arxiv="2402.00856",
        formula="KL((σ(β h), σ(-β h)) || (1 - ε, ε))",
        use="Pairs, when the policy should concentrate on good answers (reverse KL) instead of covering all of them.",
    )
    needs = Needs(batch=Pairs, reference=True)
    recipe = Recipe(
        full=1e-6,
        batch=64,
        paper=Published(
            rate=1e-6,
            batch=64,
            values={"beta": 0.1},
            source="appendix B, by TRL's paper index; β from the authors' scripts for IMDB",
        ),
    )
    evidence = (
        optimum("h = logit(1−ε)/β, where the loss is 0", "verify/test_optima.py::test_deterministic_preferences"),
        authors_code("haozheji/exact-optimization", "objectives/test_pairwise_fixtures.py"),
        independent("TRL 1.16", "verify/test_against_trl.py"),
    )

    beta: float = parameter(0.1, "strength of the pull towards the reference (β_π)", above=0, tune=Range(0.05, 1.0))
    label_smoothing: float = parameter(1e-3, "ε, target probability of the rejected response", above=0, below=0.5)
    normalised: bool = parameter(True, "log(1 - ε) as the target of the chosen response; False takes 0 (the authors)")

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        logits = self.beta * batch.margin
        target = math.log1p(-self.label_smoothing) if self.normalised else 0.0
        chosen = sigmoid(logits) * (logsigmoid(logits) - target)
        rejected = sigmoid(-logits) * (logsigmoid(-logits) - math.log(self.label_smoothing))
        return {"preference": Term(chosen + rejected)}
