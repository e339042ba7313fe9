"""Rewards of completions: functions, built-ins, reward models, ensembles and judges, alone or several with weights."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any, ClassVar

from torch import nn

from prefopt.core.errors import UsageError, did_you_mean
from prefopt.core.settings import Settings, parameter, read_settings, refuse_unknown
from prefopt.rewards.calling import Detailed, Details, RewardFunction, evaluate
from prefopt.rewards.names import LoadModel, is_number, named_reward

__all__ = ["Ensemble", "Reward", "RewardFunction", "make_reward"]

HOW = ("mean", "min", "mean_minus_std")


@dataclass(frozen=True)
class Reward:
    """A weighted sum of reward functions.

    Attributes:
        functions: the functions with their weights, by name. A weight of 0 logs a reward without training on it.
    """

    functions: dict[str, tuple[RewardFunction | Detailed, float]]

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[str], columns: Mapping[str, list[Any]]
    ) -> tuple[list[float], Details]:
        """The total reward of each completion, and what each function gave.

        Args:
            prompts, completions: one prompt for each completion.
            columns: what else is known of each completion: the dataset's columns and those of the rollout
                (`prefopt.rewards.calling.join_columns`).

        Returns:
            The totals, and for each function its own values (without its weight) under its name, followed by the
            details it has: ``"ensemble/NAME"`` for members, ``"judge/flip_rate"`` ...

        Raises:
            UsageError: a function returned the wrong number of values, or one that is not a finite number, or it reads
                a column that is not there.
        """
        total, parts = [0.0] * len(completions), {}
        for name, (function, weight) in self.functions.items():
            parts[name], details = evaluate(name, function, prompts, completions, columns)
            parts |= {f"{name}/{detail}": values for detail, values in details.items()}
            total = [t + weight * value for t, value in zip(total, parts[name], strict=True)]
        return total, parts

    detailed = __call__
    """A `Reward` may stand wherever one function may, in an ensemble for instance."""


@dataclass(frozen=True, kw_only=True)
class EnsembleSettings(Settings):
    """How the members' values become one."""

    name: ClassVar[str] = "ensemble"
    how: str = parameter("mean", "combination of the members' values", choices=HOW)
    k: float | None = parameter(
        None, "standard deviations that are subtracted, 1 by default; for mean_minus_std only", at_least=0
    )


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
        settings = EnsembleSettings.of({"how": how, "k": k})
        if k is not None and how != "mean_minus_std":
            raise UsageError(f"ensemble: k={k!r} has no effect with how={how!r}; use how='mean_minus_std'.")
        self.members = make_reward([*members], load=load).functions
        self.how = settings.how
        self.k = 1.0 if settings.k is None else float(settings.k)

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


def make_reward(reward: Any, *, load: LoadModel | None = None) -> Reward:
    """Build a `Reward` from whatever users write, in Python, YAML or a flag.

    Args:
        reward: one of these, or a list of them:

            - a function ``f(prompts, completions, **columns) -> list[float]``, or ``"FILE.py:NAME"``,
              ``"module:NAME"``;
            - a built-in by name, ``"length_penalty(limit=64)"`` (see `prefopt.rewards.penalties`);
            - a reward model: the folder or hub id of a sequence-classification model with one label;
            - ``{"ensemble": [a, b], "how": "min"}`` (see `prefopt.Ensemble`);
            - ``{"judge": URL, "model": NAME, ...}`` (see `prefopt.Judge`).

            Its weight is 1, or as in ``(reward, 0.5)``, ``"0.5*NAME"`` or ``{"reward": NAME, "weight": 0.5}``; the
            last form's ``weight`` also goes with ``ensemble`` and ``judge``. Weights that are nested multiply.
        load: makes a reward function of the name of a reward model; default `load_reward`.

    Raises:
        UsageError: it is none of these, in one line with the nearest name.
    """
    if isinstance(reward, Reward):
        return reward
    items = reward if isinstance(reward, (list, tuple)) and not _is_pair(reward) else [reward]
    if not items:
        raise UsageError("reward is an empty list: give at least one function.")
    functions: dict[str, tuple[RewardFunction | Detailed, float]] = {}
    for item in items:
        name, function, weight = _part(item, load)
        functions[_free(name, functions)] = (function, weight)
    return Reward(functions)


def _part(item: Any, load: LoadModel | None) -> tuple[str, RewardFunction | Detailed, float]:
    """The name, the function and the weight of one item."""
    if _is_pair(item):
        name, function, weight = _part(item[0], load)
        return name, function, weight * _weight(item[1])
    if isinstance(item, (list, tuple)):
        total = make_reward(item, load=load)
        return "sum", total, 1.0
    if isinstance(item, str):
        weighted = re.fullmatch(r"\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*\*\s*(.+)", item)
        if weighted:
            name, function, weight = _part(weighted[2], load)
            return name, function, weight * _weight(weighted[1])
        return *named_reward(item.strip(), load=load), 1.0
    if isinstance(item, Mapping):
        return _from_mapping(item, load)
    return _name_of(item), _checked_callable(item), 1.0


def _from_mapping(mapping: Mapping[str, Any], load: LoadModel | None) -> tuple[str, RewardFunction | Detailed, float]:
    rest = {str(key): value for key, value in mapping.items()}
    weight = _weight(rest.pop("weight", 1.0))
    kinds = [kind for kind in ("reward", "ensemble", "judge") if kind in rest]
    if len(kinds) != 1:
        near = did_you_mean(next(iter(rest), ""), ("reward", "ensemble", "judge"))
        found = ", ".join(rest) or "nothing"
        raise UsageError(f"a reward as a mapping has one of the keys reward, ensemble or judge, not {found}.{near}")
    what = rest.pop(kinds[0])
    if kinds[0] == "reward":
        refuse_unknown(f"reward {what!r}", rest, ["weight"])
        name, function, inner = _part(what, load)
        return name, function, inner * weight
    if kinds[0] == "ensemble":
        settings = read_settings(EnsembleSettings, rest, besides=["weight"])
        return "ensemble", Ensemble(what, settings.how, settings.k, load=load), weight
    from prefopt.rewards.judge import Judge

    if "model" not in rest:
        raise UsageError(f"judge {what!r} needs the name of its model: write {{judge: {what}, model: NAME}}.")
    return "judge", read_settings(Judge, {"base_url": what, **rest}, besides=["weight"]), weight


def _is_pair(item: Any) -> bool:
    """Whether this is a reward with its weight."""
    return isinstance(item, (list, tuple)) and len(item) == 2 and is_number(item[1])


def _weight(value: Any) -> float:
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not math.isfinite(weight):
        raise UsageError(f"reward: the weight {value!r} is not a finite number.")
    return weight


def _checked_callable(item: Any) -> RewardFunction | Detailed:
    if isinstance(item, nn.Module):
        raise UsageError(
            f"reward is a loaded {type(item).__name__}, which lacks its tokenizer: give its folder or hub id instead."
        )
    if isinstance(item, type):
        raise UsageError(f"reward is the class {item.__name__}: give an object of it, {item.__name__}(...).")
    if not (callable(item) or isinstance(item, Detailed)):
        raise UsageError(
            f"reward must be a function, a name such as 'FILE.py:NAME', or a mapping, not {type(item).__name__}."
        )
    return item


def _name_of(function: Any) -> str:
    if isinstance(function, Reward):
        return "sum"
    # functools.partial keeps the function that it wraps.
    function = getattr(function, "func", function)
    for attribute in ("name", "__name__"):
        if isinstance(getattr(function, attribute, None), str):
            return getattr(function, attribute)
    return type(function).__name__


def _free(name: str, taken: Mapping[str, Any]) -> str:
    return name if name not in taken else f"{name}_{len(taken)}"
