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


@register("cpo")
@dataclass(frozen=True, kw_only=True)
class CPO(Objective[Pairs]):
    """Contrastive Preference Optimization (Xu et al. 2024, arXiv 2401.08417, eq. 3).

    .. math:: L = −log σ(β [log π(y_w) − log π(y_l)]) + α · NLL(y_w)

    Reference-free: DPO with a uniform reference, plus a likelihood term that keeps the policy close to the chosen
    data. The contrastive term takes sums over completion tokens, in nats, and is a mean over pairs; it is log 2 at
    log π(y_w) = log π(y_l).

    ``nll="token"`` is Σ −log π(y_w) / Σ len_w over the whole step, completion tokens only: the authors' code and TRL.
    ``"sequence"`` is the mean over pairs of −log π(y_w)/len_w, ``"sum"`` that of −log π(y_w), which is what an
    expectation of −log π(y_w) says when read literally.

    Paper: β = 0.1, α = 1.

    Where implementations differ: the head of the authors' repository multiplies log π(y_l) by
    min(1, 0.9·e^{0.4 |m_w − m_l|} − 1), m being means, which is a later method (ARPO) and not this loss; the release
    that accompanied the paper is. SimPO's loss with a likelihood term is `cpo_simpo`.
    """

    about = About(
        title="Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation",
        year=2024,
        arxiv="2401.08417",
        formula="-log σ(β[log π(y_w) - log π(y_l)]) + α NLL(y_w)",
        use="Pairs without room for a reference model, when chosen answers are worth imitating (translation).",
    )
    needs = Needs(batch=Pairs, lengths=True)
    recipe = Recipe(
        full=1e-6,
        batch=64,
        paper=Published(values={"beta": 0.1, "alpha": 1.0}, source="as reported"),
        reason="The paper's rate and batch could not be confirmed; these are DPO's.",
    )
    evidence = (
        optimum("π(1) = p at β = 1", "verify/test_optima.py::test_cpo_of_two_one_token_responses_is_the_preference"),
        authors_code("fe1ixxu/ALMA", "objectives/test_pairwise_fixtures.py"),
    )

    beta: float = parameter(0.1, "scale of the difference of log-probabilities", above=0, tune=Range(0.01, 0.5))
    alpha: float = parameter(1.0, "α, weight of the likelihood term", at_least=0, tune=Range(0.1, 10.0))
    nll: str = parameter("token", "average of the likelihood term", choices=("token", "sequence", "sum"))

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """β · log π(y)."""
        return self.beta * completions.logps

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        return {
            "preference": Term(-logsigmoid(self.beta * (batch.chosen.logps - batch.rejected.logps))),
            "nll": Term(
                -(batch.chosen.mean if self.nll == "sequence" else batch.chosen.logps),
                "chosen_token" if self.nll == "token" else "example",
                weight=self.alpha,
            ),
        }
