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
    optimum,
    parameter,
    register,
)


@register("simpo")
@dataclass(frozen=True, kw_only=True)
class SimPO(Objective[Pairs]):
    """Simple Preference Optimization (Meng et al. 2024, arXiv 2405.14734, eq. 6).

    .. math:: L = −log σ(β (m(y_w) − m(y_l)) − γ),   m(y) = log π(y)/len(y)

    Reference-free; m is the mean log-probability per completion token, in nats, and the loss is a mean over pairs.
    β is a scale of logits here, not a KL strength, and γ is the target margin of the reward β·m. At equal means the
    loss is log(1 + e^γ).

    Paper: β from 2.0 to 2.5 and γ from 0.3 to 1.6 (table 8); the defaults are its pair for Llama-3-Base.

    Where implementations differ: the authors' current code and HALOs take the *ratio* γ/β; TRL, Liger and
    LLaMA-Factory take γ itself, as here. Convert when you carry a setting over.
    """

    about = About(
        title="SimPO: Simple Preference Optimization with a Reference-Free Reward",
        year=2024,
        arxiv="2405.14734",
        formula="-log σ(β(m_w - m_l) - γ)",
        use="Pairs without room for a reference model; keeps answers from growing long.",
    )
    needs = Needs(batch=Pairs, lengths=True)
    recipe = Recipe(
        full=6e-7,
        batch=128,
        paper=Published(
            rate=6e-7, batch=128, values={"beta": 2.0, "gamma": 1.0}, source="the authors' settings for Llama-3-Base"
        ),
        tune=Range(3e-7, 1e-6, "the authors' README"),
    )
    evidence = (
        optimum(
            "π ∝ exp(r L/β), and the closed form with a margin",
            "verify/test_optima.py::test_simpo_without_margin_ignores_the_reference",
        ),
        authors_code("princeton-nlp/SimPO", "verify/test_author_code.py"),
        independent("TRL 1.16", "verify/test_against_trl.py"),
    )

    beta: float = parameter(
        2.0, "scale of the length-normalised reward", above=0, tune=Range(2.0, 10.0, "the authors' README")
    )
    gamma: float = parameter(
        1.0, "target margin of the reward, not divided by beta", at_least=0, tune=Range(0.3, 1.6, "table 8")
    )

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """β · log π(y)/len(y)."""
        return self.beta * completions.mean

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        margin = self.reward(batch.chosen) - self.reward(batch.rejected)
        return {"preference": Term(-logsigmoid(margin - self.gamma))}
