from collections.abc import Mapping
from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from prefopt.core import About, Needs, Objective, Pairs, Recipe, State, Term, independent, optimum, parameter, register


@register("reward", aliases=("bt", "bradley_terry"))
@dataclass(frozen=True, kw_only=True)
class Reward(Objective[Pairs]):
    """A Bradley–Terry reward model (Christiano et al. 2017, arXiv 1706.03741; Ouyang et al. 2022, arXiv 2203.02155).

    .. math:: L = −log σ(r(x, y_w) − r(x, y_l)) + η (r(x, y_w) + r(x, y_l))²

    r is one number for a whole sequence, the output of a head at its last token; no log-probability enters. The loss
    is a mean over pairs, in nats, and log 2 where r = 0. With P(y_w ≻ y_l) = σ(r* − r*') its minimiser is r = r* up to
    a constant for each prompt, which preferences do not decide.

    η, ``centring``, decides it: rewards of a pair are pulled to opposite signs, so that scores of different prompts can
    be compared and stay near 0 (Eisenstein et al. 2023, arXiv 2312.09244, η = 0.01). With a single pair the minimiser
    is ±logit(p)/2 for every η > 0. The default, 0, is the plain loss.

    Where implementations differ: HALOs reads the second output of a head with two; TRL and OpenRLHF have one, as here.
    OpenRLHF's "LogExp" form is the same number without a stable softplus. Averages over the pairs of one prompt are
    `reward_kwise`.
    """

    about = About(
        title="Deep Reinforcement Learning from Human Preferences",
        year=2017,
        arxiv="1706.03741",
        formula="-log σ(r_w - r_l) + η (r_w + r_l)²",
        use="A reward model from pairs: the proxy that PPO, GRPO and rejection sampling climb, or a judge of answers.",
    )
    needs = Needs(batch=Pairs, rewards=True)
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
            "r up to a constant, from Bradley–Terry pairs",
            "objectives/test_reward_objectives.py::test_bradley_terry_preferences_give_the_reward_back_up_to_a_constant",
        ),
        independent("ContextualAI/HALOs", "objectives/test_reward_objectives.py"),
    )

    centring: float = parameter(0.0, "η, pull of r_w + r_l towards 0; the paper's is 0.01", at_least=0)

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        chosen, rejected = batch.chosen.rewards, batch.rejected.rewards
        terms = {"preference": Term(-logsigmoid(chosen - rejected))}
        if self.centring:
            terms["centring"] = Term((chosen + rejected) ** 2, weight=self.centring)
        return terms
