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
    independent,
    log1mexp,
    parameter,
    register,
)


@register("orpo")
@dataclass(frozen=True, kw_only=True)
class ORPO(Objective[Pairs]):
    """Odds Ratio Preference Optimization (Hong et al. 2024, arXiv 2403.07691, eq. 3–7).

    .. math::
        L = −m(y_w) + λ · (−log σ(log OR)),   m(y) = log π(y)/len(y),
        log OR = [m(y_w) − log(1 − e^{m(y_w)})] − [m(y_l) − log(1 − e^{m(y_l)})]

    Reference-free; both parts are means over pairs, in nats. At m(y_w) = m(y_l) the odds-ratio part is log 2.
    log(1 − e^m) is evaluated as `log1mexp`, which keeps value and gradient finite when the model is certain.

    Paper: λ = 0.1 (Mistral), 0.2 (Llama-2), 0.25 (Phi-2), learning rate 8e-6. Its eq. 8–10 print the gradient of
    log σ(log OR), that is, with the opposite sign.

    Where implementations differ: the supervised part. ``nll="sequence"`` is the mean over examples of −m(y_w)
    (LLaMA-Factory; the reading of eq. 3 and 6 taken here); ``nll="token"`` is Σ −log π(y_w) / Σ len_w over the whole
    step. The authors' code and TRL take the token mean over the batch and by default count prompt tokens as well,
    which prefopt does not.
    """

    about = About(
        title="ORPO: Monolithic Preference Optimization without Reference Model",
        year=2024,
        arxiv="2403.07691",
        formula="-m_w - λ log σ(log odds(m_w) - log odds(m_l))",
        use="One stage from a base model: learns to answer and to prefer at once, without a reference.",
    )
    needs = Needs(batch=Pairs, lengths=True)
    recipe = Recipe(
        full=8e-6,
        paper=Published(rate=8e-6, values={"lam": 0.1}, source="as reported for Mistral"),
        reason="The paper's batch could not be confirmed. TRL's paper index lists a rate of 5e-6.",
    )
    evidence = (
        authors_code("xfactlab/orpo", "verify/test_author_code.py"),
        independent("TRL 1.16", "verify/test_against_trl.py"),
    )

    lam: float = parameter(0.1, "λ, weight of the odds-ratio part", at_least=0, tune=Range(0.03, 1.0))
    nll: str = parameter("sequence", "average of the supervised part", choices=("sequence", "token"))

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """Log-odds of the length-normalised likelihood, m − log(1 − e^m)."""
        return completions.mean - log1mexp(completions.mean)

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        log_odds_ratio = self.reward(batch.chosen) - self.reward(batch.rejected)
        sequence = self.nll == "sequence"
        return {
            "nll": Term(
                -(batch.chosen.mean if sequence else batch.chosen.logps),
                "example" if sequence else "chosen_token",
            ),
            "odds_ratio": Term(-logsigmoid(log_odds_ratio), weight=self.lam),
        }
