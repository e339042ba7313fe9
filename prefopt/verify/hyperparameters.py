"""Values of an objective's hyperparameters to try: the defaults, and others within the declared bounds."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from prefopt.core.errors import UsageError
from prefopt.core.objective import Objective
from prefopt.core.registry import REGISTRY
from prefopt.core.settings import check_parameter
from prefopt.verify.cases import Source

FACTORS = (2.0, 0.3)
ADDENDS = (0.5, 0.1)


def alternatives(field: dataclasses.Field) -> tuple[Any, ...]:
    """Other values than the default that the bounds of one hyperparameter allow; empty where its type is unknown."""
    default, meta = field.default, field.metadata
    if meta.get("choices"):
        return tuple(value for value in meta["choices"] if value != default)
    if field.type is bool or isinstance(default, bool):
        return (not default,)
    if default in REGISTRY:  # the name of another objective
        return tuple(name for name in ("dpo", "simpo") if name != default)
    if default is None and meta.get("above") == 0:  # a positive number that something else says by default
        return (1.5, 40.0)
    if not isinstance(default, (int, float)):
        return ()
    values = [default * factor for factor in FACTORS] + [default + addend for addend in ADDENDS] + [-default, 0.0]
    values += [meta[bound] for bound in ("at_least", "at_most") if meta.get(bound) is not None]
    if field.type is int:
        values = [default + 1, default + 3, default - 1]
    return tuple(dict.fromkeys(value for value in values if value != default and _allowed(field, value)))


def _allowed(field: dataclasses.Field, value: Any) -> bool:
    try:
        check_parameter("", field, value)
    except UsageError:
        return False
    return True


def varied(cls: type[Objective], fixed: Mapping[str, Any]) -> list[dataclasses.Field]:
    """The hyperparameters that the name leaves open."""
    return [field for field in dataclasses.fields(cls) if field.name not in fixed]


def draw_objective(source: Source, cls: type[Objective], fixed: Mapping[str, Any]) -> Objective:
    """An objective with some of its hyperparameters changed from their defaults."""
    chosen = dict(fixed)
    for field in varied(cls, fixed):
        others = alternatives(field)
        if others and source.choice((False, True)):
            chosen[field.name] = source.choice(others)
    try:
        return cls(**chosen)
    except UsageError:  # a combination that the objective refuses
        return cls(**fixed)


def settings_of(objective: Objective) -> str:
    """The hyperparameters as they would be typed."""
    pairs = ((field.name, getattr(objective, field.name)) for field in dataclasses.fields(objective))
    return ", ".join(f"{name}={value!r}" for name, value in pairs)


def backgrounds(cls: type[Objective], fixed: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Settings of the *discrete* other hyperparameters under which ``name`` may matter, defaults first; then each
    other numeric hyperparameter moved off its default."""
    others = [field for field in varied(cls, fixed) if field.name != name]
    discrete = [field for field in others if isinstance(field.default, (bool, str)) and alternatives(field)]
    for values in itertools.product(*((field.default, *alternatives(field)) for field in discrete)):
        yield {**fixed, **{field.name: value for field, value in zip(discrete, values, strict=True)}}
    for field in others:
        if field not in discrete and alternatives(field):
            yield {**fixed, field.name: alternatives(field)[0]}
