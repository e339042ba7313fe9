from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

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
    divergence_terms,
    grouped_log_softmax,
    optimum,
    parameter,
    register,
)


@register("exo")
@dataclass(frozen=True, kw_only=True)
class EXO(Objective[Ranked]):
    """Efficient Exact Optimization on K scored completions (Ji et al. 2024, arXiv 2402.00856).

    .. math:: L = KL(softmax(β_π s) ‖ softmax(r/β_r)),   s(y) = log π(y) − log π_ref(y)

    over the K completions of a prompt, the reverse KL. s is a sum over completion tokens, in nats; the loss is a mean
    over prompts, never negative, and 0 where β_π s and r/β_r agree up to a constant of the prompt. At π = π_ref it is
    KL(uniform ‖ softmax(r/β_r)). `exo_pair` is its form for pairs with smoothed labels.

    Paper: β_π = β_r = 0.1 (IMDB), 0.5 (HH), from the authors' scripts. The number of this equation could not be
    confirmed.
    """

    about = About(
        title="Towards Efficient Exact Optimization of Language Model Alignment",
        year=2024,
        arxiv="2402.00856",
        formula="KL(softmax(β s) || softmax(reward/β_r))",
        use="Several scored answers per prompt; seeks the mode of the rewarded distribution.",
    )
    needs = Needs(batch=Ranked, reference=True, labels=("scores",))
    recipe = Recipe(
        full=1e-6,
        batch=64,
        paper=Published(
            rate=1e-6,
            batch=64,
            values={"beta": 0.1, "beta_reward": 0.1},
            source="appendix B, by TRL's paper index; β from the authors' scripts for IMDB",
        ),
    )
    evidence = (
        optimum("π_ref exp(r/(β_π β_r))", "verify/test_optima.py::test_tilts_the_reference"),
        authors_code("haozheji/exact-optimization", "objectives/test_ranked_fixtures.py"),
    )

    beta: float = parameter(0.1, "β_π, scale of the log-ratios", above=0, tune=Range(0.05, 1.0))
    beta_reward: float = parameter(0.1, "β_r, temperature of the rewards", above=0, tune=Range(0.05, 1.0))

    def terms(self, batch: Ranked, state: State) -> Mapping[str, Term]:
        policy, same = self.reward(batch.completions), batch.same
        top = torch.where(same, policy, -torch.inf).argmax(dim=1)
        # Subtracted before the division, for r/β_r may be too large to keep the differences.
        target = (batch.scores - batch.scores[top]) / self.beta_reward
        log_policy, log_target = grouped_log_softmax(policy, same), grouped_log_softmax(target, same)
        # d = log p − log q, as that of the top and what the others have more: neither is lost beside log p and log q.
        more = policy - policy[top] - target
        rough = (log_policy - log_target)[top]
        first = _first(more, log_target, same, rough)
        # Σ p d, written as d_top + Σ p (d − d_top): nothing cancels when p is all but hard. Of the two forms of d_top
        # one has all digits of the value, the other those of its slope in a score.
        itself = top == torch.arange(len(top), device=top.device)
        apart = torch.where(itself, rough + (first - rough).detach(), log_policy.exp() * more)
        together = torch.where(same, more.abs(), 0.0).amax(dim=1) < 0.5
        close = divergence_terms(log_policy, log_target, first + more)
        return {"ranking": Term(torch.where(together, close, apart), "group")}


def _first(
    more: Float[Tensor, " n"], log_q: Float[Tensor, " n"], same: Bool[Tensor, " n n"], rough: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """log p − log q of the top of each group, ``more`` being how much larger that of another one is.

    It is −log Σ q e^more, because Σ p = 1; ``rough`` where it is far from 0 and has digits enough as it is.
    """
    small = more.abs() < 0.5
    slight = log_q.exp() * torch.expm1(torch.where(small, more, 0.0))
    gain = torch.where(small, slight, torch.exp(log_q + more) - log_q.exp())
    moved = torch.where(same, gain, 0.0).sum(dim=1)
    near = moved.abs() < 0.5
    return torch.where(near, -torch.log1p(torch.where(near, moved, 0.0)), rough)
