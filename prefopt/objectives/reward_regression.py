from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from prefopt.core import About, Needs, Objective, Ranked, Recipe, State, Term, optimum, parameter, register


@register("reward_regression", aliases=("rm_regression",))
@dataclass(frozen=True, kw_only=True)
class RewardRegression(Objective[Ranked]):
    """A reward model as a regression to ratings (as in HelpSteer2, Wang et al. 2024, arXiv 2406.08673).

    .. math:: L = (r(x, y) − s)²   or, with ``target="difference"``,   ((r_i − r_j) − (s_i − s_j))²

    s is the rating of an answer. ``"rating"`` is a mean over answers, of which a prompt may have one or many; its
    minimiser is the mean rating E[s | x, y], on the scale of the ratings. ``"difference"`` looks at two answers of a
    prompt at a time, a mean over the pairs of a prompt and then over prompts; it is blind to a constant for each
    prompt, and a prompt with one answer is of no use to it.

    The form is that of published code; the equation of the paper could not be confirmed. Ratings are taken as they are:
    bring the scales of different sources together before.
    """

    about = About(
        title="HelpSteer2: Open-source dataset for training top-performing reward models",
        year=2024,
        arxiv="2406.08673",
        formula="(r - s)²  or  ((r_i - r_j) - (s_i - s_j))²",
        use="A reward model from ratings of single answers, such as stars from 1 to 5.",
    )
    needs = Needs(batch=Ranked, rewards=True, labels=("scores",), singles=True)
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
        optimum("the mean rating", "objectives/test_reward_objectives.py::test_regression_finds_the_mean_rating"),
    )

    target: str = parameter("rating", "what is regressed to", choices=("rating", "difference"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target == "difference":
            object.__setattr__(self, "needs", replace(self.needs, singles=False))

    def terms(self, batch: Ranked, state: State) -> Mapping[str, Term]:
        error = batch.completions.rewards - batch.scores
        if self.target == "rating":
            return {"regression": Term(error**2, "completion")}
        first, second = batch.same.triu(diagonal=1).nonzero(as_tuple=True)
        pairs = batch.sizes[first] * (batch.sizes[first] - 1) / 2
        return {"regression": Term((error[first] - error[second]) ** 2 / pairs.to(error.dtype), "group")}

    def metrics(self, batch: Ranked, state: State) -> dict[str, Tensor]:
        reward = batch.completions.rewards
        return {**super().metrics(batch, state), "rewards/mean": reward, "rewards/error": (reward - batch.scores).abs()}
