"""What an online algorithm is made of, and its registration: prefopt's own and other packages' in the same way."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from prefopt import objectives
from prefopt.core import registry
from prefopt.core.batches import Rollouts
from prefopt.core.errors import UsageError
from prefopt.core.evidence import Evidence
from prefopt.core.labels import LABELS
from prefopt.core.needs import About, Needs
from prefopt.core.recipe import ONLINE_DEFAULTS, Recipe
from prefopt.core.settings import Settings, parameter
from prefopt.rollouts.processor import RolloutProcessor
from prefopt.rollouts.schedule import UpdateSchedule


@dataclass(frozen=True, kw_only=True)
class CriticSettings(Settings):
    """What the critic is, and how it is trained. Its loss is the objective ``value``."""

    name: ClassVar[str] = "critic"
    critic: str = parameter(
        "auto",
        "head (on the policy's own hidden states), adapter (of its own on the same base), model (weights of its own); "
        "auto is an adapter beside an adapter, a model beside a model",
        choices=("auto", "head", "adapter", "model"),
    )
    critic_rate: float = parameter(1.0, "its learning rate as a multiple of the policy's", above=0)
    vf_coef: float = parameter(0.1, "weight of its loss", above=0)
    epsilon_value: float = parameter(0.2, "how far a value may move from the one at sampling time", above=0)


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """An online algorithm before its hyperparameters are chosen. See `register_algorithm` for the attributes."""

    name: str
    processor: type[RolloutProcessor]
    objective: str | None
    stated: About | None = None
    recipe: Recipe = ONLINE_DEFAULTS
    evidence: tuple[Evidence, ...] = ()
    schedule: Mapping[str, Any] = field(default_factory=dict)
    critic: bool = False
    generation: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def about(self) -> About:
        """The paper: the algorithm's own, or that of its objective."""
        return self.stated or objectives.get_objective(self.objective).about


ASSEMBLIES: dict[str, Assembly] = {}
ALIASES: dict[str, str] = {}


def register_algorithm(
    name: str,
    *,
    processor: type[RolloutProcessor],
    objective: str | None,
    about: About | None = None,
    recipe: Recipe = ONLINE_DEFAULTS,
    evidence: tuple[Evidence, ...] = (),
    schedule: Mapping[str, Any] | None = None,
    critic: bool = False,
    generation: Mapping[str, Any] | None = None,
    aliases: tuple[str, ...] = (),
) -> None:
    """Make an online algorithm known under a name: where its examples come from, its loss, and how it is trained.

    Another package calls this in a module that it names under the entry point group ``prefopt.algorithms``.

    Args:
        name: The name of the algorithm.
        processor: The class that makes training examples of sampled completions; its fields are hyperparameters.
        objective: The loss as text, such as ``"dpo"`` or ``"ppo + 0.1*sft"``; None if the user names a pairwise one.
        about: The paper. By default that of the objective.
        recipe: The way to train it. A batch counts prompts, of which each has several completions.
        evidence: What speaks for the examples being the paper's. Evidence for the loss belongs to the objective.
        schedule: How often a rollout is used, where that is not the default: fields of the schedule by name.
        critic: Whether a critic is trained beside the policy.
        generation: Generation settings that are not the default, by name.
        aliases: Other names of the very same algorithm.

    Raises:
        UsageError: The name or an alias is taken, or the schedule has no such field.
    """
    objectives.load_own()
    _check_schedule(name, schedule or {})
    _claim(name, objective)
    for alias in aliases:
        _claim(alias, None)
    if objective is None and about is None:
        raise UsageError(f"the algorithm {name!r} has no objective whose paper it could name: pass about=.")
    ASSEMBLIES[name] = Assembly(
        name=name,
        processor=processor,
        objective=objective,
        stated=about,
        recipe=recipe,
        evidence=evidence,
        schedule=dict(schedule or {}),
        critic=critic,
        generation=dict(generation or {}),
        aliases=aliases,
    )
    ALIASES.update(dict.fromkeys(aliases, name))


def _check_schedule(name: str, schedule: Mapping[str, Any]) -> None:
    known = [one.name for one in fields(UpdateSchedule)]
    for key in schedule:
        if key not in known:
            raise UsageError(f"the algorithm {name!r}: schedule has no field {key!r}. It has {', '.join(known)}.")
    UpdateSchedule(**schedule)


def _claim(name: str, objective: str | None) -> None:
    if name in ASSEMBLIES or name in ALIASES:
        holder = ASSEMBLIES[ALIASES.get(name, name)].processor
        raise UsageError(
            f"an algorithm named {name!r} is registered already, with {holder.__name__}; choose another name."
        )
    if name not in registry.REGISTRY and name not in registry.ALIASES:
        return
    # An algorithm may share its name with its own loss if no dataset could train that loss anyway: "grpo", "xpo".
    if objective != name or not _needs_samples(registry.lookup(name).cls.needs):
        raise UsageError(f"an objective named {name!r} is registered already; choose another name for the algorithm.")


def _needs_samples(needs: Needs) -> bool:
    """Whether a loss reads what only sampled completions have."""
    return needs.batch is Rollouts or any(name in LABELS and not LABELS[name].columns for name in needs.labels)
