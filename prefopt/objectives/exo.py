from collections.abc import Mapping
from dataclasses import dataclass

import torch

from prefopt.batches import Ranked
from prefopt.objective import About, Needs, Objective, State, Term, grouped_log_softmax, parameter
from prefopt.registry import register


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

    beta: float = parameter(0.1, "β_π, scale of the log-ratios", above=0)
    beta_reward: float = parameter(0.1, "β_r, temperature of the rewards", above=0)

    def terms(self, batch: Ranked, state: State) -> Mapping[str, Term]:
        policy, same = self.reward(batch.completions), batch.same
        top = torch.where(same, policy, -torch.inf).argmax(dim=1)
        # Subtracted before the division, for r/β_r may be too large to keep the differences.
        target = (batch.scores - batch.scores[top]) / self.beta_reward
        log_policy, log_target = grouped_log_softmax(policy, same), grouped_log_softmax(target, same)
        # Σ p_i d_i with d = log p − log q, written as d_top + Σ p_i (d_i − d_top): nothing cancels when p is all but
        # hard.
        others = log_policy.exp() * (policy - policy[top] - target)
        first = top == torch.arange(len(top), device=top.device)
        return {"ranking": Term(torch.where(first, log_policy - log_target, others), "group")}
