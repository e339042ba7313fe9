"""Calling a reward function: which columns it gets, and what it may return."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from prefopt.core.errors import UsageError, did_you_mean

RewardFunction = Callable[..., Sequence[float]]
"""``f(prompts, completions, **columns) -> list[float]``: one finite number per completion, higher is better.

Prompts are as in the dataset (strings or messages), completions are strings without special tokens. Every other column
of the dataset is a list of the same length, and so are the facts of the rollout, `ROLLOUT_COLUMNS`. A function is given
the columns that its parameters name, or all of them if it takes ``**columns``. A column called like one of the first
two parameters (the ``completions`` of a ranked dataset) is not passed: those two are the sampled ones.
"""

ROLLOUT_COLUMNS = {
    "ended": "bool: whether the completion ended by itself rather than at the token limit",
    "lengths": "int: its tokens, the end token included",
    "max_new_tokens": "int: the token limit",
    "group": "int: equal for completions that answer the same prompt of this rollout",
}
"""What is known of every sampled completion besides its text, by the name of its column."""

Details = dict[str, list[float]]
"""Further values to log, by name: one per completion, averaged over them."""


@runtime_checkable
class Detailed(Protocol):
    """A reward that has more to log than its values: an ensemble its members, a judge its flips."""

    def detailed(
        self, prompts: Sequence[Any], completions: Sequence[str], columns: Mapping[str, list[Any]]
    ) -> tuple[list[float], Details]:
        """The reward of each completion, and details that have the same names at every call."""
        ...


def join_columns(dataset: Mapping[str, list[Any]], rollout: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The columns of the dataset and those of the rollout together.

    Raises:
        UsageError: the dataset has a column with a name of `ROLLOUT_COLUMNS`. Neither can win: a reward that reads
            ``lengths`` could mean either.
    """
    for name in dataset:
        if name in rollout:
            raise UsageError(
                f"the data has a column {name!r}, which rewards know as something of the sampled completions "
                f"({', '.join(ROLLOUT_COLUMNS)}): rename it with data.columns={{{name!r}: 'data_{name}'}}."
            )
    return {**dataset, **rollout}


def evaluate(
    name: str,
    function: RewardFunction | Detailed,
    prompts: Sequence[Any],
    completions: Sequence[str],
    columns: Mapping[str, list[Any]],
) -> tuple[list[float], Details]:
    """Call one reward function and check what it returns.

    Args:
        name: of the reward, for messages.
        function: the reward.
        prompts, completions: one prompt for each completion.
        columns: everything else that is known of each completion.

    Raises:
        UsageError: it reads a column that is not there, or returns something else than one finite number for each
            completion.
    """
    if isinstance(function, Detailed):
        values, details = function.detailed(prompts, completions, columns)
        return _checked(name, values, len(completions)), details
    values = function(prompts, completions, **_accepted(name, function, columns))
    return _checked(name, values, len(completions)), {}


def _accepted(name: str, function: RewardFunction, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    parameters = list(inspect.signature(function).parameters.values())
    keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    # The first two are filled by position with prompts and completions.
    sampled = {parameter.name for parameter in parameters[:2]}
    offered = {key: values for key, values in columns.items() if key not in sampled}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        accepted = offered
    else:
        named = {parameter.name for parameter in parameters[2:] if parameter.kind in keywords}
        accepted = {key: values for key, values in offered.items() if key in named}
    for parameter in parameters[2:]:
        required = parameter.default is inspect.Parameter.empty and parameter.kind in keywords
        if required and parameter.name not in accepted:
            raise UsageError(
                f"reward {name} reads the column {parameter.name!r}, which is not there."
                f"{did_you_mean(parameter.name, offered)} The columns are {', '.join(offered) or 'none'}."
            )
    return accepted


def _checked(name: str, values: Any, expected: int) -> list[float]:
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Mapping)):
        raise UsageError(f"reward {name} returned {type(values).__name__}: it must return one number per completion.")
    numbers = [_number(name, i, value) for i, value in enumerate(values)]
    if len(numbers) != expected:
        raise UsageError(f"reward {name} returned {len(numbers)} values for {expected} completions.")
    return numbers


def _number(name: str, i: int, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UsageError(f"reward {name} returned {value!r:.60} for completion {i}: it must be a number.") from None
    if not math.isfinite(number):
        raise UsageError(f"reward {name} returned {number} for completion {i}: rewards must be finite numbers.")
    return number
