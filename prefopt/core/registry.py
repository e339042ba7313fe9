"""Objectives by name: registration, aliases, presets, and the errors for names that are not there."""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from prefopt.core.batches import Rollouts
from prefopt.core.errors import UsageError, did_you_mean
from prefopt.core.evidence import Evidence
from prefopt.core.objective import Objective
from prefopt.core.recipe import Recipe
from prefopt.core.settings import read_settings


@dataclass(frozen=True)
class Entry:
    """One registered name.

    Attributes:
        name: The name.
        cls: The class behind it.
        fixed: Hyperparameters that the name fixes.
        recipe: How to train it; None where nobody declared that.
        evidence: What speaks for it being the paper's loss.
    """

    name: str
    cls: type[Objective]
    fixed: Mapping[str, Any]
    recipe: Recipe | None
    evidence: tuple[Evidence, ...]

    @property
    def trains_from_data(self) -> bool:
        """Whether it is an algorithm by itself; a loss on rollouts is a part of one."""
        return self.cls.needs.batch is not Rollouts


REGISTRY: dict[str, Entry] = {}
ALIASES: dict[str, str] = {}
AMBIGUOUS: dict[str, tuple[str, ...]] = {}

O = TypeVar("O", bound=Objective)  # noqa: E741


def register(name: str, *, aliases: tuple[str, ...] = ()) -> Callable[[type[O]], type[O]]:
    """Class decorator: make an objective known under ``name``. An alias must be the very same loss.

    Raises:
        UsageError: the name is taken.
    """

    def decorate(cls: type[O]) -> type[O]:
        for one in (name, *aliases):
            _claim(one, cls)
        cls.name = name
        REGISTRY[name] = Entry(name, cls, {}, recipe_of(cls), evidence_of(cls))
        ALIASES.update(dict.fromkeys(aliases, name))
        return cls

    return decorate


def register_preset(
    name: str, base: str, *, recipe: Recipe | None = None, evidence: tuple[Evidence, ...] = (), **fixed: Any
) -> None:
    """Make ``name`` mean the objective ``base`` with some hyperparameters fixed (shown as such by `explain`).

    Args:
        name: The new name.
        base: The registered name of the objective.
        recipe: How to train it. By default as ``base``.
        evidence: What speaks for the loss with these hyperparameters; that of ``base`` may speak for others only.
        **fixed: The hyperparameters.
    """
    _claim(name)
    of = REGISTRY[base]
    REGISTRY[name] = Entry(name, of.cls, fixed, recipe or of.recipe, evidence)


def ambiguous(name: str, *choices: str) -> None:
    """Refuse ``name``, because the literature uses it for several losses, and say for which."""
    AMBIGUOUS[name] = choices


def lookup(name: str) -> Entry:
    """The entry registered under a name or an alias.

    Raises:
        UsageError: the name is unknown (with the nearest one) or ambiguous (with the choices).
    """
    if name in AMBIGUOUS:
        raise UsageError(f"{name!r} names several losses; choose {' or '.join(map(repr, AMBIGUOUS[name]))}.")
    key = ALIASES.get(name, name)
    if key not in REGISTRY:
        near = did_you_mean(name, [*REGISTRY, *ALIASES])
        raise UsageError(f"there is no objective {name!r}.{near} `prefopt algorithms` lists all.")
    return REGISTRY[key]


def build(name: str, **hyperparameters: Any) -> Objective:
    """Make the objective registered under ``name``, which may carry hyperparameters: ``"dpo(beta=0.2)"``.

    Raises:
        UsageError: an unknown name, an unknown hyperparameter, one that the name fixes, or a value out of bounds.
    """
    if "(" in name:
        name, written = parse_call(name)
        twice = written.keys() & hyperparameters
        if twice:
            raise UsageError(f"{name}: {', '.join(sorted(twice))} is given twice, inside the brackets and outside.")
        return build(name, **written, **hyperparameters)
    entry = lookup(name)
    for key in hyperparameters:
        if key in entry.fixed:
            raise UsageError(f"{name} fixes {key}={entry.fixed[key]!r}; use {entry.cls.name!r} to choose it.")
    return read_settings(entry.cls, {**entry.fixed, **hyperparameters}, name, noun="hyperparameter")


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Read ``name`` or ``name(key=value, ...)``; a value is a number, true, false, or a word with or without quotes.

    Raises:
        UsageError: the text is something else.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            return node.func.id, {keyword.arg: _literal(keyword) for keyword in node.keywords}
    except (SyntaxError, ValueError):
        pass
    raise UsageError(f"cannot read {text!r}; write an objective as 'dpo' or 'dpo(beta=0.2)'.")


def _literal(keyword: ast.keyword) -> Any:
    if keyword.arg is None:
        raise ValueError("**")
    if isinstance(keyword.value, ast.Name):
        return {"true": True, "false": False}.get(keyword.value.id, keyword.value.id)
    return ast.literal_eval(keyword.value)


def recipe_of(cls: type[Objective]) -> Recipe | None:
    """The recipe that a class declares itself. That of a base class was chosen for another loss."""
    return vars(cls).get("recipe")


def evidence_of(cls: type[Objective]) -> tuple[Evidence, ...]:
    """The evidence that a class declares itself. That of a base class speaks for another loss."""
    return vars(cls).get("evidence", ())


def _claim(name: str, again: type[Objective] | None = None) -> None:
    """Refuse a name that is taken, unless by the same definition that is run again, as in a notebook."""
    if name in REGISTRY or name in ALIASES:
        cls = REGISTRY[ALIASES.get(name, name)].cls
        if again is not None and (cls.__module__, cls.__qualname__) == (again.__module__, again.__qualname__):
            return
        raise UsageError(
            f"an objective named {name!r} is registered already, by {cls.__module__}; choose another name."
        )
