from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from prefopt.core import About, Needs, Objective, Published, Ranked, Recipe, State, Term, optimum, register


@register("reward_kwise")
@dataclass(frozen=True, kw_only=True)
class RewardKwise(Objective[Ranked]):
    """A reward model from rankings of K answers (Ouyang et al. 2022, InstructGPT, arXiv 2203.02155, eq. 1).

    .. math:: L = −1/C(K,2) · Σ_{i ≻ j} log σ(r(x, y_i) − r(x, y_j))

    A mean over the pairs that a prompt's ranking states, then over prompts, in nats: a prompt with many answers weighs
    no more than one with two, and each answer is scored once however many pairs it is in. At r = 0 it is log 2; at
    K = 2 it is `reward`. On rankings by a Bradley–Terry model the minimiser is its r up to a constant for each prompt.

    The equation could not be confirmed against code of the authors. With ties the divisor is the number of
    pairs that are not tied; a prompt whose answers are all tied states no preference and contributes 0.

    Where implementations differ: `reward` on the same data takes every pair as an example of its own, so that a prompt
    with K answers weighs C(K,2) times as much.
    """

    about = About(
        title="Training language models to follow instructions with human feedback",
        year=2022,
        arxiv="2203.02155",
        formula="-(1/C(K,2)) Σ_{i≻j} log σ(r_i - r_j)",
        use="A reward model from rankings of several answers to each prompt.",
    )
    needs = Needs(batch=Ranked, rewards=True)
    recipe = Recipe(
        full=1e-5,
        batch=64,
        micro_batch=8,
        paper=Published(batch=64, source="as reported"),
        reason=(
            "The rate is Llama 2's (arXiv 2307.09288), the batch InstructGPT's (arXiv 2203.02155); a second "
            "epoch overfits."
        ),
    )
    evidence = (
        optimum(
            "r up to a constant, from Plackett–Luce rankings",
            "objectives/test_reward_objectives.py::test_rankings_give_the_reward_back_up_to_a_constant",
        ),
    )

    def terms(self, batch: Ranked, state: State) -> Mapping[str, Term]:
        reward, above = batch.completions.rewards, batch.above
        better, worse = above.nonzero(as_tuple=True)
        # Of each completion: how many pairs the ranking of its prompt states.
        stated = torch.where(batch.same, above.sum(dim=1), 0).sum(dim=1)
        return {"preference": Term(-logsigmoid(reward[better] - reward[worse]) / stated[better], "group")}
