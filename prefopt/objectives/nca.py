from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.core import (
    About,
    Needs,
    Objective,
    Published,
    Range,
    Ranked,
    Recipe,
    State,
    Term,
    authors_code,
    grouped_log_softmax,
    optimum,
    parameter,
    register,
    sigmoid,
)

_TITLE = "Noise Contrastive Alignment of Language Models with Explicit Rewards"


@dataclass(frozen=True, kw_only=True)
class _SoftTargets(Objective[Ranked]):
    beta: float = parameter(0.01, "strength of the pull towards the reference", above=0, tune=Range(0.001, 0.1))
    alpha: float = parameter(1e-4, "α, temperature of the rewards that make the targets", above=0)

    def targets(self, batch: Ranked) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """t = softmax(reward/α) within each group, and for each completion the row that its group has most of t on."""
        top = torch.where(batch.same, batch.scores, -torch.inf).argmax(dim=1)
        # Subtracted before the division, for reward/α may be too large to keep the differences.
        logits = (batch.scores - batch.scores[top]) / self.alpha
        return grouped_log_softmax(logits, batch.same).exp(), top


def _log_sigmoid_gain(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """log σ(a) − log σ(b), which keeps its digits where a and b are close."""
    difference = a - b
    close = difference.abs() < 1
    near = torch.log1p(torch.expm1(torch.where(close, difference, 0.0)) * sigmoid(-a))
    return torch.where(close, near, logsigmoid(a) - logsigmoid(b))


@register("infonca")
@dataclass(frozen=True, kw_only=True)
class InfoNCA(_SoftTargets):
    """InfoNCA (Chen et al. 2024, arXiv 2402.05369).

    .. math:: L = −Σ_i t_i log softmax(r)_i,   r_i = β s(y_i),   t = softmax(reward/α),   s(y) = log π(y) − log π_ref(y)

    over the K scored completions of a prompt. s is a sum over completion tokens, in nats; the loss is a mean over
    prompts. At π = π_ref it is log K. Adding a constant to every s of a prompt changes nothing. As α → 0 with K = 2
    it becomes DPO.

    Paper: β = 0.01, learning rate 5e-6, batch 32. α = 1e-4 is what the authors' script uses with UltraFeedback's
    scores, which makes the targets all but hard; the numbers of the equations could not be confirmed.

    Where implementations differ: the authors' code adds 0.01 to the score of the first completion, the best one, before
    the softmax. A comment in it calls the divisor the reciprocal of α; the arithmetic divides by it, as here.
    """

    about = About(
        title=_TITLE,
        year=2024,
        arxiv="2402.05369",
        formula="-Σ_i t_i log softmax(β s)_i, t = softmax(reward/α)",
        use="Several scored answers per prompt, whose relative likelihoods should follow the scores.",
    )
    needs = Needs(batch=Ranked, reference=True, labels=("scores",))
    recipe = Recipe(
        full=5e-6,
        paper=Published(
            rate=5e-6,
            batch=32,
            values={"beta": 0.01, "alpha": 1e-4},
            source="appendix C, by TRL's paper index; α from the authors' script",
        ),
    )
    evidence = (
        optimum("π_ref exp(r/(α β))", "verify/test_optima.py::test_tilts_the_reference"),
        authors_code("thu-ml/Noise-Contrastive-Alignment", "objectives/test_ranked_fixtures.py"),
    )

    def terms(self, batch: Ranked, state: State) -> Mapping[str, Term]:
        reward, (targets, top) = self.reward(batch.completions), self.targets(batch)
        # −Σ t_i c_i with c = log softmax(r), written as −c_top + Σ t_i (c_top − c_i): nothing cancels when t is all but
        # hard.
        others = targets * (reward[top] - reward)
        first = top == torch.arange(len(top), device=top.device)
        return {"ranking": Term(torch.where(first, -grouped_log_softmax(reward, batch.same), others), "group")}


@register("nca")
@dataclass(frozen=True, kw_only=True)
class NCA(_SoftTargets):
    """Noise Contrastive Alignment on K scored completions (Chen et al. 2024, arXiv 2402.05369).

    .. math::
        L = −Σ_i [t_i log σ(r_i) + (1/K) log σ(−r_i)],   r_i = β s(y_i),   t = softmax(reward/α)

    with s(y) = log π(y) − log π_ref(y), a sum over completion tokens, in nats; the loss is a mean over prompts. It
    looks at absolute rewards: the minimiser is r_i = log(K t_i), so the best completion is drawn to a finite
    likelihood. At π = π_ref it is 2 log 2 for every K. `nca_pair` is its hard form for pairs, t = (1, 0).

    Paper: β = 0.01, learning rate 5e-6, batch 32. α = 1e-4 is what the authors' script uses with UltraFeedback's
    scores, which makes the targets all but hard; the numbers of the equations could not be confirmed.

    Where implementations differ: the authors' code adds 0.01 to the score of the first completion, the best one, before
    the softmax.
    """

    about = About(
        title=_TITLE,
        year=2024,
        arxiv="2402.05369",
        formula="-Σ_i [t_i log σ(β s_i) + log σ(-β s_i)/K], t = softmax(reward/α)",
        use="Several scored answers per prompt, when the likelihood of the best one must not fall.",
    )
    needs = Needs(batch=Ranked, reference=True, labels=("scores",))
    recipe = Recipe(
        full=5e-6,
        paper=Published(
            rate=5e-6,
            batch=32,
            values={"beta": 0.01, "alpha": 1e-4},
            source="appendix C, by TRL's paper index; α from the authors' script",
        ),
    )
    evidence = (
        optimum("β s = log(K t)", "verify/test_optima.py::test_nca_draws_rewards_to_log_k_t"),
        authors_code("thu-ml/Noise-Contrastive-Alignment", "objectives/test_ranked_fixtures.py"),
    )

    def terms(self, batch: Ranked, state: State) -> Mapping[str, Term]:
        reward, (targets, top) = self.reward(batch.completions), self.targets(batch)
        # −Σ t_i log σ(r_i), written as −log σ(r_top) + Σ t_i (log σ(r_top) − log σ(r_i)).
        others = targets * _log_sigmoid_gain(reward[top], reward)
        first = top == torch.arange(len(top), device=top.device)
        values = torch.where(first, -logsigmoid(reward), others) - logsigmoid(-reward) / batch.sizes
        return {"ranking": Term(values, "group")}
