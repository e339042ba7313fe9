"""Rewards of completions: functions, built-ins, reward models, ensembles and judges, alone or several with weights."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from prefopt.errors import UsageError, did_you_mean
from prefopt.rollouts.calling import Detailed, Details, RewardFunction, evaluate
from prefopt.rollouts.reward_names import LoadModel, is_number, named_reward

__all__ = ["Reward", "RewardFunction", "make_reward"]


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
                (`prefopt.rollouts.calling.join_columns`).

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


def make_reward(reward: Any, *, load: LoadModel | None = None) -> Reward:
    """Build a `Reward` from whatever users write, in Python, YAML or a flag.

    Args:
        reward: one of these, or a list of them:

            - a function ``f(prompts, completions, **columns) -> list[float]``, or ``"FILE.py:NAME"``,
              ``"module:NAME"``;
            - a built-in by name, ``"length_penalty(limit=64)"`` (see `prefopt.rollouts.penalties`);
            - a reward model: the folder or hub id of a sequence-classification model with one label;
            - ``{"ensemble": [a, b], "how": "min"}`` (see `prefopt.rollouts.ensemble.Ensemble`);
            - ``{"judge": URL, "model": NAME, ...}`` (see `prefopt.rollouts.judge.Judge`).

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
        if rest:
            near = did_you_mean(next(iter(rest)), ("weight",))
            raise UsageError(f"reward {what!r} has no setting {next(iter(rest))!r}.{near} It has weight.")
        name, function, inner = _part(what, load)
        return name, function, inner * weight
    if kinds[0] == "ensemble":
        from prefopt.rollouts.ensemble import Ensemble

        return "ensemble", Ensemble.of(what, rest, load=load), weight
    from prefopt.rollouts.judge import Judge

    return "judge", Judge.of(what, rest), weight


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
