"""Whether a class says what an objective must say, before anything is tried on it."""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from prefopt.core.batches import Batch, Rollouts
from prefopt.core.errors import did_you_mean
from prefopt.core.needs import About, Needs
from prefopt.core.objective import Objective
from prefopt.verify.guard import what_was_raised

DECORATOR = "@dataclass(frozen=True, kw_only=True)"


def undeclared_parts(cls: type[Objective], fixed: Mapping[str, Any]) -> str:
    """What a class fails to declare, or declares wrongly, as a sentence; empty if nothing."""
    return next(_mistakes(cls, fixed), "")


def _mistakes(cls: type[Objective], fixed: Mapping[str, Any]) -> Iterator[str]:
    loose = [name for name, value in vars(cls).items() if isinstance(value, dataclasses.Field)]
    if loose:
        yield f"{', '.join(loose)} is no hyperparameter yet: decorate the class with {DECORATOR}"
    if inspect.isabstract(cls):
        yield f"it does not write {', '.join(sorted(cls.__abstractmethods__))}"
    for name, kind in (("about", About), ("needs", Needs)):
        if not isinstance(getattr(cls, name, None), kind):
            yield f"it has no {name}: write `{name} = {kind.__name__}(...)` in the class"
    for field in dataclasses.fields(cls):
        if "help" not in field.metadata:
            yield f"the hyperparameter {field.name} is not declared with `parameter`"
        elif field.name not in fixed and field.default is field.default_factory is dataclasses.MISSING:
            yield f"the hyperparameter {field.name} has no default"
    try:
        needs = cls(**fixed).needs
    except Exception as error:
        yield f"it cannot be made: {what_was_raised(error)}"
        return
    if not (inspect.isclass(needs.batch) and issubclass(needs.batch, Batch)):
        yield f"needs names {needs.batch!r} as its batch, which is no container"
        return
    known = needs.batch.label_fields()
    for label in (*needs.labels, *needs.optional):
        if label not in known:
            near = did_you_mean(label, known)
            yield f"needs names the label {label!r}, which a batch of {needs.batch.kind} does not carry.{near}"
    if needs.batch is Rollouts and not needs.tokens:
        yield "needs names rollouts, which carry per-token values, without tokens=True"
