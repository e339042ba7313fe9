"""The named assemblies. Every registered objective is an algorithm on data from disk; the online ones stand here."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from prefopt import registry
from prefopt.catalogue.recipes import Recipe, recipe_for
from prefopt.combined import Combined
from prefopt.errors import UsageError, did_you_mean
from prefopt.objective import About, Objective
from prefopt.objectives import get_objective, names
from prefopt.rollouts import BestOf, Selection


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What a trainer runs.

    Attributes:
        name: the word it is called by; of a weighted sum, the text that writes it.
        objective: the loss.
        selection: None where examples come from a dataset; else how sampled completions become examples.
        recipe: training arguments that suit it.
        about: where it comes from.
    """

    name: str
    objective: Objective
    selection: Selection | None
    recipe: Recipe
    about: About

    @property
    def online(self) -> bool:
        return self.selection is not None

    @property
    def data_kind(self) -> str:
        """What the dataset must hold: pairs, labelled, ranked, demonstrations, or prompts."""
        return "prompts" if self.online else self.objective.needs.batch.kind

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the summands of a weighted sum; empty for everything else."""
        return tuple(one.name for _, one in self.objective.members) if isinstance(self.objective, Combined) else ()

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """By name; a weighted sum has none of its own, those of its parts stand in its name."""
        if self.parts:
            return {}
        return dataclasses.asdict(self.selection if self.online else self.objective)


@dataclass(frozen=True)
class Online:
    """An online algorithm: its selection, the objective that learns from what is selected, and its source."""

    selection: type[Selection]
    objective: str
    about: About
    aliases: tuple[str, ...] = ()


ONLINE = {
    "rejection_sampling": Online(
        selection=BestOf,
        objective="sft",
        aliases=("raft", "best_of_n"),
        about=About(
            title="RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment",
            year=2023,
            arxiv="2304.06767",
            formula="-log π(y*), y* the best of n completions of π by reward",
            use="A reward that can be computed and no preference data; the most robust online start.",
        ),
    ),
}
_ONLINE_ALIASES = {alias: name for name, online in ONLINE.items() for alias in online.aliases}


def algorithms() -> list[str]:
    """The names of all algorithms, sorted."""
    return sorted([*names(), *ONLINE])


def get_algorithm(name: str | Objective, **hyperparameters: Any) -> Algorithm:
    """The algorithm called ``name``, with hyperparameters of its own; or the one that trains with an objective.

    Example:
        >>> get_algorithm("dpo", beta=0.05)
        >>> get_algorithm("dpo(beta=0.05) + 0.2*sft")

    Raises:
        UsageError: an unknown or ambiguous name, an unknown hyperparameter, or a value out of bounds.
    """
    if isinstance(name, Objective):
        if hyperparameters:
            raise UsageError(f"this objective has its hyperparameters already: leave {', '.join(hyperparameters)} out.")
        return _assembled(name, name.name or type(name).__name__)
    online = ONLINE.get(_ONLINE_ALIASES.get(name, name))
    if online is None:
        return _offline(name, hyperparameters)
    name = _ONLINE_ALIASES.get(name, name)
    known = [field.name for field in dataclasses.fields(online.selection)]
    for key in hyperparameters:
        if key not in known:
            raise UsageError(
                f"{name} has no hyperparameter {key!r}.{did_you_mean(key, known)} It has {', '.join(known)}; "
                "how completions are sampled is set by generation=."
            )
    return Algorithm(
        name=name,
        objective=get_objective(online.objective),
        selection=online.selection(**hyperparameters),
        recipe=recipe_for(name),
        about=online.about,
    )


def _offline(text: str, hyperparameters: dict[str, Any]) -> Algorithm:
    names()
    known = [*registry.REGISTRY, *registry.ALIASES, *registry.AMBIGUOUS, *ONLINE, *_ONLINE_ALIASES]
    if text.isidentifier() and text not in known:
        raise UsageError(f"there is no algorithm {text!r}.{did_you_mean(text, known)} `prefopt algorithms` lists all.")
    sampling = [word for word in re.findall(r"\w+", text) if word in ONLINE or word in _ONLINE_ALIASES]
    if sampling:
        raise UsageError(f"{sampling[0]} samples its own data: name it alone, and give its hyperparameters apart.")
    objective = get_objective(text, **hyperparameters)
    name = text.split("(")[0].strip()
    return _assembled(objective, registry.ALIASES.get(name, name))


def _assembled(objective: Objective, name: str) -> Algorithm:
    first, about = name, objective.about
    if isinstance(objective, Combined):
        name, first = objective.name, objective.members[0][1].name
        about = dataclasses.replace(objective.about, formula=_formula(objective))
    recipe = recipe_for(first, coupled=objective.needs.coupled)
    return Algorithm(name=name, objective=objective, selection=None, recipe=recipe, about=about)


def _formula(objective: Combined) -> str:
    return " + ".join(f"{weight:g} · ({one.about.formula})" for weight, one in objective.members)
