"""What an online algorithm is made of, and its registration: prefopt's own and other packages' in the same way."""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, TypeVar

from prefopt import objectives
from prefopt.core import registry
from prefopt.core.batches import Batch, Rollouts
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
    critic_start: str = parameter(
        "auto",
        "what it starts from: policy (with a head of zeros), reward (the reward model); auto is the reward model where "
        "there is one of the same architecture and vocabulary",
        choices=("auto", "policy", "reward"),
    )
    critic_rate: float = parameter(
        10.0, "its learning rate as a multiple of the policy's, at which it would hardly learn", above=0
    )
    critic_warmup: int = parameter(0, "optimizer steps in which it learns and the policy waits", at_least=0)
    vf_coef: float = parameter(0.1, "weight of its loss", above=0)
    epsilon_value: float = parameter(
        0.2, "how far a value may move from the one at sampling time, in units of the reward", above=0
    )


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """An online algorithm before its hyperparameters are chosen. See `register_algorithm` for the attributes.

    ``module`` is the name of the module that registered it.
    """

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
    module: str = ""

    @property
    def about(self) -> About:
        """The paper: the algorithm's own, or that of its objective if the two have one name."""
        if self.stated is not None:
            return self.stated
        of_loss = objectives.get_objective(self.objective)
        if of_loss.name == self.name:
            return of_loss.about
        return About(title="no paper declared", year=0, formula=of_loss.about.formula)


ASSEMBLIES: dict[str, Assembly] = {}
ALIASES: dict[str, str] = {}


P = TypeVar("P", bound=type)


def register_algorithm(
    name: str,
    *,
    processor: type[RolloutProcessor] | None = None,
    objective: str | None,
    about: About | None = None,
    recipe: Recipe = ONLINE_DEFAULTS,
    evidence: tuple[Evidence, ...] = (),
    schedule: Mapping[str, Any] | None = None,
    critic: bool = False,
    generation: Mapping[str, Any] | None = None,
    aliases: tuple[str, ...] = (),
) -> Callable[[P], P]:
    """Make an online algorithm known under a name: where its examples come from, its loss, and how it is trained.

    It may be called with a ``processor``, or stand above the class of one as a decorator. Another package does that in
    a module that it names under the entry point group ``prefopt.algorithms``.

    Args:
        name: The name of the algorithm.
        processor: The class that makes training examples of sampled completions; its fields are hyperparameters.
        objective: The loss as text, such as ``"dpo"`` or ``"ppo + 0.1*sft"``; None if the user names a pairwise one.
        about: The paper. By default that of an objective of the same name; of another one, only the formula.
        recipe: The way to train it. A batch counts prompts, of which each has several completions.
        evidence: What speaks for the examples being the paper's. Evidence for the loss belongs to the objective.
        schedule: How often a rollout is used, where that is not the default: fields of the schedule by name.
        critic: Whether a critic is trained beside the policy.
        generation: Generation settings that are not the default, by name.
        aliases: Other names of the very same algorithm.

    Returns:
        The decorator, which returns the class as it is.

    Raises:
        UsageError: The name or an alias is taken, the schedule has no such field, or the processor is none.
    """
    objectives.load_own()
    _check_schedule(name, schedule or {})
    if objective is None and about is None:
        raise UsageError(f"the algorithm {name!r} has no objective whose paper it could name: pass about=.")
    # By whom: the same module may register the same name again, as a cell of a notebook does.
    by = sys._getframe(1).f_globals.get("__name__", "")

    def decorate(cls: P) -> P:
        _check_class(name, cls)
        _claim(name, objective, by)
        for alias in aliases:
            _claim(alias, None, by)
        ASSEMBLIES[name] = Assembly(
            name=name,
            processor=cls,
            objective=objective,
            stated=about,
            recipe=recipe,
            evidence=evidence,
            schedule=dict(schedule or {}),
            critic=critic,
            generation=dict(generation or {}),
            aliases=aliases,
            module=by,
        )
        ALIASES.update(dict.fromkeys(aliases, name))
        return cls

    if processor is not None:
        decorate(processor)
    return decorate


def _check_class(name: str, cls: Any) -> None:
    """Refuse what cannot be a rollout processor, where it is registered."""
    if not inspect.isclass(cls):
        raise UsageError(f"the algorithm {name!r}: {cls!r} is no class of rollout processors.")
    loose = [key for key, value in vars(cls).items() if isinstance(value, Field)]
    if not is_dataclass(cls) or loose:
        raise UsageError(
            f"the algorithm {name!r}: decorate {cls.__name__} with @dataclass(frozen=True, kw_only=True), below "
            "@register_algorithm; its fields are hyperparameters."
        )
    batch = getattr(cls, "batch", None)
    if not inspect.isclass(batch) or not issubclass(batch, Batch):
        raise UsageError(
            f"the algorithm {name!r}: {cls.__name__} does not say what it makes, such as batch: ClassVar[type] = Pairs."
        )


def _check_schedule(name: str, schedule: Mapping[str, Any]) -> None:
    known = [one.name for one in fields(UpdateSchedule)]
    for key in schedule:
        if key not in known:
            raise UsageError(f"the algorithm {name!r}: schedule has no field {key!r}. It has {', '.join(known)}.")
    UpdateSchedule(**schedule)


def _claim(name: str, objective: str | None, by: str) -> None:
    if name in ASSEMBLIES or name in ALIASES:
        taken = ASSEMBLIES[ALIASES.get(name, name)]
        if taken.module == by:
            return
        holder = taken.processor
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
