"""Rewards of completions: Python functions, alone or several with weights."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.errors import UsageError
from prefopt.importing import load_target

RewardFunction = Callable[..., Sequence[float]]
"""``f(prompts, completions, **columns) -> list[float]``: one number per completion. Prompts are as in the dataset
(strings or messages), completions are strings, and every other column of the dataset is a list of the same length."""


@dataclass(frozen=True)
class Reward:
    """A weighted sum of reward functions.

    Attributes:
        functions: the functions with their weights, by name.
    """

    functions: dict[str, tuple[RewardFunction, float]]

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[str], columns: dict[str, list[Any]]
    ) -> tuple[list[float], dict[str, list[float]]]:
        """The total reward of each completion, and each function's own.

        Raises:
            UsageError: a function returned the wrong number of values, or one that is not a finite number.
        """
        parts = {
            name: _checked(name, function(prompts, completions, **_accepted(function, columns)), len(completions))
            for name, (function, _) in self.functions.items()
        }
        weights = [weight for _, weight in self.functions.values()]
        total = [sum(w * v for w, v in zip(weights, row, strict=True)) for row in zip(*parts.values(), strict=True)]
        return total, parts


def make_reward(reward: Any) -> Reward:
    """Build a `Reward`.

    Args:
        reward: a function; ``"FILE.py:NAME"`` or ``"module:NAME"``; or a list of these, each alone or as a pair
            with its weight.

    Raises:
        UsageError: it is none of these, or the named function cannot be found.
    """
    items = reward if isinstance(reward, (list, tuple)) else [reward]
    if not items:
        raise UsageError("reward is an empty list: give at least one function.")
    functions: dict[str, tuple[RewardFunction, float]] = {}
    for item in items:
        function, weight = item if isinstance(item, (list, tuple)) else (item, 1.0)
        function = load_target(function, "reward") if isinstance(function, str) else function
        if not callable(function):
            raise UsageError(f"reward must be a function or 'FILE.py:NAME', not {type(function).__name__}.")
        name = getattr(function, "__name__", type(function).__name__)
        functions[name if name not in functions else f"{name}_{len(functions)}"] = (function, float(weight))
    return Reward(functions)


def _accepted(function: RewardFunction, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return columns
    return {name: values for name, values in columns.items() if name in parameters}


def _checked(name: str, values: Any, expected: int) -> list[float]:
    values = [float(value) for value in values]
    if len(values) != expected:
        raise UsageError(f"reward {name} returned {len(values)} values for {expected} completions.")
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise UsageError(f"reward {name} returned {value} for completion {i}: rewards must be finite numbers.")
    return values
