from collections.abc import Mapping
from dataclasses import dataclass

import torch
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
    independent,
    parameter,
    register,
)


def _expm1(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """eˣ − 1. The gradient of `torch.expm1` is its result + 1, which has no digits left for a very negative x."""
    return torch.where(x > -1, torch.expm1(x), torch.exp(x) - 1)


@register("alphapo")
@dataclass(frozen=True, kw_only=True)
class AlphaPO(Objective[Pairs]):
    """AlphaPO: SimPO with a reward of another shape (Gupta et al. 2025, arXiv 2501.03884).

    .. math::
        L = −log σ(β [r(y_w) − r(y_l)] − γ),   r(y) = (1 − P^{−α})/α,   P = e^{m(y)},   m(y) = log π(y)/len(y)

    Reference-free; m is the mean log-probability per completion token, in nats; the loss is a mean over pairs. r
    increases with P for every α; α > 0 makes it steeper at low probability, α < 0 flatter, and α = 0 stands for the
    limit r = m, which is SimPO. At equal means the loss is log(1 + e^γ).

    Clamp: P^{−α} = e^{−αm} overflows where a response is very unlikely per token and α > 0. The exponent is cut at
    ``max_exponent`` (a perplexity of e^{80/α}), beyond which that completion sends no gradient. The metric ``clamped``
    is the share of pairs in which this happened to either completion.

    Paper: α = 0.25, β = 2.5, γ = 0.1 for Mistral-Instruct, as TRL's paper index reports them. Whether that 0.1 is γ or
    γ/β, and the number of the equation, could not be confirmed; here γ is not divided by β.

    Where implementations differ: TRL's ``alpha`` acts on every CPO loss, on sums of log-probabilities for ``sigmoid``
    and ``hinge``; only its ``loss_type="alphapo"`` is this loss. It forms (e^m)^{−α}, which has less range.
    """

    about = About(
        title="AlphaPO: Reward Shape Matters for LLM Alignment",
        year=2025,
        arxiv="2501.03884",
        formula="-log σ(β(r_w - r_l) - γ), r = (1 - e^(-α m))/α",
        use="As SimPO, when its reward falls too fast or too slowly for unlikely answers.",
    )
    needs = Needs(batch=Pairs, lengths=True)
    recipe = Recipe(
        full=7e-7,
        batch=128,
        paper=Published(
            rate=7e-7,
            values={"alpha": 0.25, "beta": 2.5, "gamma": 0.1},
            source="table 3, Mistral-Instruct, as TRL's paper index reports it",
        ),
        reason="The paper's batch could not be confirmed; it is SimPO's.",
    )
    evidence = (independent("TRL at 04fd120", "objectives/test_pairwise_fixtures.py"),)

    alpha: float = parameter(0.25, "α, shape of the reward; 0 is SimPO", tune=Range(0.05, 1.0))
    beta: float = parameter(2.5, "scale of the reward", above=0, tune=Range(2.0, 10.0))
    gamma: float = parameter(0.1, "target margin of the reward, not divided by beta", at_least=0, tune=Range(0.03, 1.0))
    max_exponent: float = parameter(80.0, "cut of the exponent -α m", above=0, at_most=80)

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """β · (1 − e^{−αm})/α."""
        if self.alpha == 0:
            return self.beta * completions.mean
        exponent = (-self.alpha * completions.mean).clamp(max=self.max_exponent)
        return self.beta * -_expm1(exponent) / self.alpha

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        margin = self.reward(batch.chosen) - self.reward(batch.rejected)
        return {"preference": Term(-logsigmoid(margin - self.gamma))}

    def metrics(self, batch: Pairs, state: State) -> dict[str, Tensor]:
        largest = -self.alpha * torch.stack([batch.chosen.mean, batch.rejected.mean])
        clamped = (largest > self.max_exponent).any(dim=0).float()
        return {**super().metrics(batch, state), "clamped": clamped}
