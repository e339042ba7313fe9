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
    optimum,
    parameter,
    register,
)


@register("cal_dpo")
@dataclass(frozen=True, kw_only=True)
class CalDPO(Objective[Pairs]):
    """Calibrated DPO (Xiao et al. 2024, arXiv 2412.14516).

    .. math::
        L = −log σ(h) + w · [(s(y_w) − 1/(2β))² + (s(y_l) + 1/(2β))²],
        h = s(y_w) − s(y_l),   s(y) = log π(y) − log π_ref(y)

    s is a sum over completion tokens, in nats; the loss is a mean over pairs. β appears in the target of the
    calibration only, not in the logistic term. The second part is w times `sppo_hard`: it drives s(y_w) above 0 and
    s(y_l) below, where DPO knows only their difference. At π = π_ref the loss is log 2 + w/(2β²).

    β = 1e-3 (the authors' script). w = 1 here; the paper's weight and the number of its equation could not be
    confirmed.

    Where implementations differ: the authors' code has w = ½, and averages the calibration over the batch before it
    adds it to every row, so that only batch means can be compared.
    """

    about = About(
        title="Cal-DPO: Calibrated Direct Preference Optimization for Language Model Alignment",
        year=2024,
        arxiv="2412.14516",
        formula="-log σ(h) + w[(s_w - 1/(2β))² + (s_l + 1/(2β))²]",
        use="Pairs, when the rewards should have a scale of their own and chosen answers stay likely.",
    )
    needs = Needs(batch=Pairs, reference=True)
    recipe = Recipe(
        full=5e-7,
        batch=64,
        paper=Published(values={"beta": 1e-3, "weight": 0.5}, source="the authors' code"),
        reason=(
            "Rate and batch are SPPO's, whose squares it adds. The paper's weight could not be confirmed; it is 1 here."
        ),
    )
    evidence = (
        optimum("logistic loss plus SPPO's squares", "verify/test_identities.py::test_sums_of_known_losses"),
        authors_code("tengxiao1/Cal-DPO", "objectives/test_pairwise_fixtures.py"),
    )

    beta: float = parameter(1e-3, "targets of the log-ratios are ±1/(2β)", above=0, tune=Range(1e-4, 1e-2))
    weight: float = parameter(
        1.0, "w, weight of the calibration (the authors' code: 0.5)", at_least=0, tune=Range(0.1, 10.0)
    )

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        target = 1 / (2 * self.beta)
        calibration = (batch.chosen.log_ratio - target) ** 2 + (batch.rejected.log_ratio + target) ** 2
        return {
            "preference": Term(-logsigmoid(batch.margin)),
            "calibration": Term(calibration, weight=self.weight),
        }
