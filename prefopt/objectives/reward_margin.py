from collections.abc import Mapping
from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from prefopt.core import About, Needs, Objective, Pairs, Published, Recipe, State, Term, optimum, register


@register("reward_margin", aliases=("bt_margin",))
@dataclass(frozen=True, kw_only=True)
class RewardMargin(Objective[Pairs]):
    """A reward model with a margin for each pair (Touvron et al. 2023, Llama 2, arXiv 2307.09288, eq. 2).

    .. math:: L = −log σ(r(x, y_w) − r(x, y_l) − m)

    m is the column ``margin`` of the data: larger where annotators found the chosen answer clearly better. The loss is
    a mean over pairs, in nats; at r_w − r_l = m it is log 2. With a fixed m and P(y_w ≻ y_l) = p the minimiser is
    r_w − r_l = z with e^z = [(2p−1) + √((1−2p)² + 4p(1−p)e^{−2m})] / [2(1−p)e^{−m}], logit p at m = 0, where the loss
    is that of `reward`.

    Paper: m = 1, 2/3, 1/3 and 0 (its small set) or 3, 2, 1 and 0 (its large set) for "significantly better", "better",
    "slightly better" and "negligibly better". A row without a margin is dropped and counted.
    """

    about = About(
        title="Llama 2: Open Foundation and Fine-Tuned Chat Models",
        year=2023,
        arxiv="2307.09288",
        formula="-log σ(r_w - r_l - m)",
        use="A reward model from pairs whose annotators also said by how much the chosen answer is better.",
    )
    needs = Needs(batch=Pairs, rewards=True, labels=("rated_margin",))
    recipe = Recipe(
        full=1e-5,
        batch=64,
        micro_batch=8,
        paper=Published(rate=1e-5, source="as reported"),
        reason=(
            "The rate is Llama 2's (arXiv 2307.09288), the batch InstructGPT's (arXiv 2203.02155); a second "
            "epoch overfits."
        ),
    )
    evidence = (
        optimum(
            "the closed form of r_w − r_l under a margin",
            "objectives/test_reward_objectives.py::test_the_minimiser_with_a_margin_has_a_closed_form",
        ),
    )

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        return {"preference": Term(-logsigmoid(batch.chosen.rewards - batch.rejected.rewards - batch.rated_margin))}
