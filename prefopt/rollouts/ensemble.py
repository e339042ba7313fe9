"""Several rewards as one, so that what fools a single one pays less."""

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any, Self

from prefopt.errors import UsageError, did_you_mean
from prefopt.rollouts.calling import Details, evaluate
from prefopt.rollouts.reward_names import LoadModel, is_number
from prefopt.rollouts.rewards import make_reward

HOW = ("mean", "min", "mean_minus_std")


class Ensemble:
    """The members' values of each completion, combined.

    - ``"mean"``: their mean;
    - ``"min"``: the lowest, the worst-case optimization of Coste et al. 2023 (arXiv 2310.02743);
    - ``"mean_minus_std"``: mean − k·std, with the population's standard deviation over the members (divided by their
      number m, not m − 1). Coste et al. subtract a multiple of the variance instead, which changes with the square of
      the rewards' scale; this changes with the scale.

    Members should be on one scale; a weight multiplies a member's values before they are combined, it does not count
    the member more.

    Args:
        members: two or more of what `make_reward` takes: names, functions, pairs with a weight, lists that are summed,
            other ensembles.
        how: see above.
        k: standard deviations that are subtracted, at least 0; 1 by default, for ``"mean_minus_std"`` only.
        load: makes a reward function of the name of a reward model; default `load_reward`.

    Attributes:
        members: the members by name.

    Each member's values are logged under its name.

    Raises:
        UsageError: fewer than two members, an unknown ``how``, or a ``k`` that has no effect.
    """

    name = "ensemble"

    def __init__(
        self, members: Any, how: str = "mean", k: float | None = None, *, load: LoadModel | None = None
    ) -> None:
        # Two of which the second is a number would be one member with its weight.
        if not isinstance(members, (list, tuple)) or len(members) < 2 or any(map(is_number, members)):
            raise UsageError("an ensemble needs a list of two or more rewards.")
        if how not in HOW:
            near = did_you_mean(str(how), HOW)
            raise UsageError(f"ensemble: how={how!r} is not one of {', '.join(map(repr, HOW))}.{near}")
        if k is not None and how != "mean_minus_std":
            raise UsageError(f"ensemble: k={k!r} has no effect with how={how!r}; use how='mean_minus_std'.")
        k = 1.0 if k is None else k
        if not is_number(k) or not 0 <= k < float("inf"):
            raise UsageError(f"ensemble: k={k!r} must be a finite number of at least 0.")
        self.members = make_reward([*members], load=load).functions
        self.how = how
        self.k = float(k)

    @classmethod
    def of(cls, members: Any, settings: Mapping[str, Any], *, load: LoadModel | None = None) -> Self:
        """From the mapping ``{ensemble: members, how: ..., k: ...}`` of a YAML file.

        Raises:
            UsageError: an unknown key, or what the class itself refuses.
        """
        for key in settings:
            if key not in ("how", "k"):
                raise UsageError(f"ensemble has no setting {key!r}.{did_you_mean(key, ('how', 'k', 'weight'))}")
        return cls(members, **settings, load=load)

    def detailed(
        self, prompts: Sequence[Any], completions: Sequence[str], columns: Mapping[str, list[Any]]
    ) -> tuple[list[float], Details]:
        """The combined value of each completion, and each member's own."""
        details: Details = {}
        weighted = []
        for name, (member, weight) in self.members.items():
            try:
                details[name], inner = evaluate(name, member, prompts, completions, columns)
            except UsageError as error:
                raise UsageError(f"ensemble, member {name}: {error}") from error
            except Exception as error:
                error.add_note(f"in the member {name} of an ensemble of rewards")
                raise
            details |= {f"{name}/{detail}": values for detail, values in inner.items()}
            weighted.append([weight * value for value in details[name]])
        return [self._combine(row) for row in zip(*weighted, strict=True)], details

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str], **columns: list[Any]) -> list[float]:
        """The combined value of each completion."""
        return self.detailed(prompts, completions, columns)[0]

    def _combine(self, values: tuple[float, ...]) -> float:
        if self.how == "min":
            return min(values)
        mean = fmean(values)
        return mean if self.how == "mean" else mean - self.k * pstdev(values, mean)
