from collections.abc import Mapping
from dataclasses import dataclass

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
    optimum,
    parameter,
    register,
)


@register("cpo_simpo")
@dataclass(frozen=True, kw_only=True)
class CPOSimPO(Objective[Pairs]):
    """CPO-SimPO: the loss of SimPO (arXiv 2405.14734, eq. 6) with the likelihood term of CPO (arXiv 2401.08417, eq. 3).

    .. math:: L = −log σ(β [m(y_w) − m(y_l)] − γ) + α · NLL(y_w),   m(y) = log π(y)/len(y)

    Reference-free; in nats. The first term is a mean over pairs; at equal means it is log(1 + e^γ). The likelihood is
    ``nll="token"``, Σ −log π(y_w) / Σ len_w over the whole step (TRL, as for CPO), or ``nll="sequence"``, the mean over
    pairs of −m(y_w). α = 0 is SimPO.

    There is no paper; the combination comes from the authors of CPO. β and γ are those of `simpo` here, and α = 1 that
    of `cpo`; the values of the release could not be confirmed. γ is not divided by β.
    """

    about = About(
        title="CPO-SimPO: SimPO with the likelihood term of CPO",
        year=2024,
        formula="-log σ(β(m_w - m_l) - γ) + α NLL(y_w)",
        use="As SimPO, when its answers degrade without a likelihood term.",
    )
    needs = Needs(batch=Pairs, lengths=True)
    recipe = Recipe(
        full=6e-7,
        batch=128,
        reason="There is no paper; rate and batch are SimPO's.",
    )
    evidence = (optimum("SimPO plus α times the likelihood", "verify/test_identities.py::test_sums_of_known_losses"),)

    beta: float = parameter(2.0, "scale of the length-normalised reward", above=0, tune=Range(2.0, 10.0))
    gamma: float = parameter(1.0, "target margin of the reward, not divided by beta", at_least=0, tune=Range(0.3, 1.6))
    alpha: float = parameter(1.0, "α, weight of the likelihood term", at_least=0, tune=Range(0.1, 10.0))
    nll: str = parameter("token", "average of the likelihood term", choices=("token", "sequence"))

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """β · log π(y)/len(y)."""
        return self.beta * completions.mean

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        margin = self.reward(batch.chosen) - self.reward(batch.rejected)
        sequence = self.nll == "sequence"
        return {
            "preference": Term(-logsigmoid(margin - self.gamma)),
            "nll": Term(
                -(batch.chosen.mean if sequence else batch.chosen.logps),
                "example" if sequence else "chosen_token",
                weight=self.alpha,
            ),
        }
