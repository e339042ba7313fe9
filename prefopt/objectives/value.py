from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prefopt.core import (
    About,
    Completions,
    Needs,
    Objective,
    Rollouts,
    State,
    Term,
    authors_code,
    independent,
    parameter,
    register,
)


@register("value")
@dataclass(frozen=True, kw_only=True)
class Value(Objective[Rollouts]):
    """The critic's part of PPO (OpenAI's 1909.08593 code): squared error to the returns, clipped like the policy.

    .. math:: L = mean_t ½ max((V_t − R_t)², (clip(V_t, V_old − ε, V_old + ε) − R_t)²)

    averaged over the completion tokens of the step. The maximum is never less than the plain squared error; where the
    clipped branch is the larger one the gradient is 0.
    """

    about = About(
        title="Fine-Tuning Language Models from Human Preferences",
        year=2019,
        arxiv="1909.08593",
        formula="mean_t ½ max((V_t - R_t)², (clip(V_t, V_old ± ε) - R_t)²)",
    )
    needs = Needs(batch=Rollouts, tokens=True, values=True, labels=("values", "old_values", "returns"))
    evidence = (
        authors_code("openai/lm-human-preferences", "objectives/test_policy_gradient.py"),
        independent("verl-project/verl", "objectives/test_policy_gradient.py"),
    )

    epsilon_value: float = parameter(0.2, "how far a value may move from the one at sampling time", above=0)

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """A critic prefers no completion: log π."""
        return completions.logps

    def terms(self, batch: Rollouts, state: State) -> Mapping[str, Term]:
        values, old, returns = (torch.where(batch.tokens.mask, x, 0.0) for x in self._columns(batch))
        near = values.clamp(old - self.epsilon_value, old + self.epsilon_value)
        worse = torch.maximum((values - returns) ** 2, (near - returns) ** 2)
        return {"value": Term(0.5 * batch.tokens.sum(worse), per="token")}

    def metrics(self, batch: Rollouts, state: State) -> dict[str, Tensor]:
        mask = batch.tokens.mask
        values, old, returns = (x[mask] for x in self._columns(batch))
        return {
            "value/error": (values - returns) ** 2,
            "value/mean": values,
            "value/clip_fraction": ((values - old).abs() > self.epsilon_value).to(values.dtype),
        }

    def _columns(self, batch: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
        return batch.values, batch.old_values, batch.returns
