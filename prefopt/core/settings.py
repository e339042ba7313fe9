"""Declared settings: default, meaning and bounds of a field, and one check for all of them."""

import dataclasses
import math
from typing import Any

from prefopt.core.errors import UsageError
from prefopt.core.recipe import Range


def parameter(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    below: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] = (),
    tune: Range | None = None,
) -> Any:
    """Declare a hyperparameter of an objective: default, meaning, bounds (open or closed), and where to tune it."""
    bounds = {"above": above, "below": below, "at_least": at_least, "at_most": at_most, "choices": choices}
    return dataclasses.field(default=default, metadata={"help": help, **bounds, "tune": tune})


def check_parameter(owner: str, field: dataclasses.Field, value: Any) -> None:
    """Check one hyperparameter against its declared type and bounds.

    Raises:
        UsageError: naming the owner, the parameter, the value it had and what is allowed.
    """
    meta, where = field.metadata, f"{owner}: {field.name}={value!r}"
    if meta.get("choices"):
        if value not in meta["choices"]:
            raise UsageError(f"{where} is not one of {', '.join(map(repr, meta['choices']))}.")
        return
    if field.type is bool:
        if not isinstance(value, bool):
            raise UsageError(f"{where} must be true or false.")
        return
    if field.type in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UsageError(f"{where} must be a finite number.")
        if field.type is int and value != int(value):
            raise UsageError(f"{where} must be a whole number.")
    rules = (
        ("above", lambda v, b: v > b, ">"),
        ("below", lambda v, b: v < b, "<"),
        ("at_least", lambda v, b: v >= b, ">="),
        ("at_most", lambda v, b: v <= b, "<="),
    )
    for key, holds, sign in rules:
        bound = meta.get(key)
        if bound is not None and not holds(value, bound):
            raise UsageError(f"{where} is out of range: it must be {sign} {bound}.")
