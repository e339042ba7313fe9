from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from prefopt.core import (
    About,
    Needs,
    Objective,
    Ranked,
    Recipe,
    State,
    Term,
    authors_code,
    masked_logsumexp,
    optimum,
    register,
)


@register("reward_best_of_k", aliases=("best_of_k",))
@dataclass(frozen=True, kw_only=True)
class RewardBestOfK(Objective[Ranked]):
    """A reward model from the best of K answers (Ziegler et al. 2019, arXiv 1909.08593, eq. 1).

    .. math:: L = −log [exp r(x, y_b) / Σ_{i≤K} exp r(x, y_i)],   y_b the answer that was picked

    A softmax cross-entropy over the K answers of a prompt, a mean over prompts, in nats; the order of the others does
    not matter. At r = 0 it is log K; at K = 2 it is `reward`. Where picks follow softmax(r*) the minimiser is r* up to
    a constant for each prompt.

    Paper: K = 4. It does not speak of ties: here tied answers do not compete, so where several are best, each is
    compared with itself and the answers below, and the mean over them is taken.
    """

    about = About(
        title="Fine-Tuning Language Models from Human Preferences",
        year=2019,
        arxiv="1909.08593",
        formula="-log softmax(r)_best",
        use="A reward model from several answers of which annotators picked the best.",
    )
    needs = Needs(batch=Ranked, rewards=True)
    recipe = Recipe(
        full=1e-5,
        batch=64,
        micro_batch=8,
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
        authors_code("openai/lm-human-preferences", "objectives/test_reward_objectives.py"),
    )

    def terms(self, batch: Ranked, state: State) -> Mapping[str, Term]:
        reward, above = batch.completions.rewards, batch.above
        best = ~above.any(dim=0)
        # A group whose answers are all tied has no pick.
        picked = best & above.any(dim=1)
        others = masked_logsumexp(reward, above[picked])
        ties = torch.where(batch.same, best, False).sum(dim=1)
        return {"pick": Term(-logsigmoid(reward[picked] - others) / ties[picked], "group")}
