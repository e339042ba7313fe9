"""The named assemblies: an objective, where its examples come from, and a recipe of training arguments."""

import dataclasses
import inspect
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefopt.algorithms.assembly import ALIASES, ASSEMBLIES, Assembly, CriticSettings
from prefopt.algorithms.online import assemblies
from prefopt.core import registry
from prefopt.core.batches import Pairs, Rollouts
from prefopt.core.errors import UsageError, did_you_mean
from prefopt.core.evidence import Evidence
from prefopt.core.importing import is_target, load_module, no_such_name
from prefopt.core.labels import sources_of
from prefopt.core.needs import About
from prefopt.core.objective import Combined, Objective, describe
from prefopt.core.recipe import DEFAULTS, Range, Recipe
from prefopt.core.settings import check_parameter, read_settings, refuse_unknown
from prefopt.objectives import get_objective, names
from prefopt.rollouts.processor import RolloutProcessor
from prefopt.rollouts.rollout import MIXTURE, REFERENCE
from prefopt.rollouts.schedule import UpdateSchedule


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What a trainer runs.

    Attributes:
        name: the word it is called by; of a weighted sum, the text that writes it.
        objective: the loss.
        recipe: training arguments that suit it.
        about: where it comes from.
        evidence: what speaks for its loss being the paper's; online, for its examples being the paper's.
        processor: None where examples come from a dataset; else what makes examples of sampled completions.
        schedule: how often what was sampled is used.
        critic: the critic, of an algorithm that has one.
        generation: defaults of `GenerationSettings`.
    """

    name: str
    objective: Objective
    recipe: Recipe
    about: About
    evidence: tuple[Evidence, ...] = ()
    processor: RolloutProcessor | None = None
    schedule: UpdateSchedule = field(default_factory=UpdateSchedule)
    critic: CriticSettings | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def online(self) -> bool:
        return self.processor is not None

    @property
    def needs_reference(self) -> bool:
        """Whether the loss, the advantages or the sampling look at a reference."""
        if self.objective.needs.reference or self.processor is None:
            return self.objective.needs.reference
        return "ref_logps" in self.processor.needs or not {REFERENCE, MIXTURE}.isdisjoint(self.processor.samplers)

    @property
    def uses_ratio(self) -> bool:
        """Whether the loss divides by the probability at sampling time, which must then be that of the whole law."""
        return self.objective.needs.batch is Rollouts

    @property
    def data_kind(self) -> str:
        """What the dataset must hold: pairs, labelled, ranked, demonstrations, or prompts."""
        return "prompts" if self.online else self.objective.needs.batch.kind

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the summands of a weighted sum; empty for everything else."""
        return tuple(one.name for _, one in self.objective.members) if isinstance(self.objective, Combined) else ()

    @property
    def settings(self) -> tuple[Any, ...]:
        """What has hyperparameters: the objective and, online, the processor, the schedule and the critic."""
        objective = () if self.parts else (self.objective,)
        online = (self.processor, self.schedule, self.critic) if self.online else ()
        return (*objective, *(one for one in online if one is not None))

    @property
    def takes_objective(self) -> bool:
        """Whether the user names the loss, as a hyperparameter."""
        # An algorithm may be put together by hand, and have a name that nothing is registered under.
        assembly = ASSEMBLIES.get(self.name)
        return self.online and assembly is not None and assembly.objective is None

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """By name; a weighted sum has none of its own, those of its parts stand in its name."""
        own = {"objective": describe(self.objective)} if self.takes_objective else {}
        return own | {name: value for one in self.settings for name, value in dataclasses.asdict(one).items()}

    def ranges(self, *, trains_adapter: bool = False) -> dict[str, Range]:
        """Where to tune: the learning rate, and by name the hyperparameters that declare a range."""
        fields = [field for one in self.settings for field in dataclasses.fields(one)]
        own = {field.name: field.metadata["tune"] for field in fields if field.metadata.get("tune")}
        return {"learning_rate": self.recipe.rates(trains_adapter=trains_adapter), **own}


def all_names() -> list[str]:
    """The names of all algorithms, sorted; every objective and plug-in is imported."""
    offline = [name for name in names() if registry.REGISTRY[name].trains_from_data]
    return sorted({*offline, *assemblies()})


def get_algorithm(name: str | Objective, **hyperparameters: Any) -> Algorithm:
    """The algorithm called ``name``, with hyperparameters of its own; or the one that trains with an objective.

    Example:
        >>> get_algorithm("dpo", beta=0.05)
        >>> get_algorithm("dpo(beta=0.05) + 0.2*sft")
        >>> get_algorithm("ppo", kl_coef=0.1, passes=2)
        >>> get_algorithm("online", objective="ipo", tau=0.05)
        >>> get_algorithm("my_paper.py:ODPO", alpha=0.5)

    Raises:
        UsageError: an unknown or ambiguous name, a file that cannot be loaded, an unknown hyperparameter, or a value
            out of bounds.
    """
    if isinstance(name, Objective):
        if hyperparameters:
            raise UsageError(f"this objective has its hyperparameters already: leave {', '.join(hyperparameters)} out.")
        return _assembled(name, name.name or type(name).__name__)
    if is_target(name):
        return _from_file(name, hyperparameters)
    online = assemblies()
    name = ALIASES.get(name, name)
    return _online(online[name], hyperparameters) if name in online else _offline(name, hyperparameters)


def _from_file(text: str, given: dict[str, Any]) -> Algorithm:
    """What ``FILE.py:NAME`` or ``module:NAME`` names: an objective, a rollout processor, or an algorithm.

    The name is that of a class or an object in the file, or one under which the file registers something.
    """
    online = assemblies()
    module, name = load_module(text, "algorithm")
    own = {key: one for key, one in online.items() if one.module == module.__name__}
    thing = getattr(module, name, None)
    if thing is None:
        registered = [key for key, entry in registry.REGISTRY.items() if entry.cls.__module__ == module.__name__]
        if name not in (*own, *registered):
            raise no_such_name(text, "algorithm", module, [*own, *registered])
        return get_algorithm(name, **given)
    if isinstance(thing, (Algorithm, Objective)):
        if given:
            raise UsageError(f"{text} has its hyperparameters already: leave {', '.join(given)} out.")
        return thing if isinstance(thing, Algorithm) else get_algorithm(thing)
    if inspect.isclass(thing) and issubclass(thing, Objective):
        objective = read_settings(thing, given, thing.name or name, noun="hyperparameter")
        return _assembled(objective, objective.name or name)
    made = [one for one in own.values() if one.processor is thing]
    if len(made) == 1:
        return _online(made[0], given)
    if made:
        raise UsageError(
            f"{text} serves several algorithms: write {text.rpartition(':')[0]}:NAME with one of "
            f"{', '.join(one.name for one in made)}."
        )
    hint = " Put @prefopt.register_algorithm above it." if inspect.isclass(thing) else ""
    if inspect.isfunction(thing):
        hint = " `prefopt verify` compares a function with a loss; to train, write it as an Objective."
    raise UsageError(f"{text} is neither an Objective nor a registered algorithm.{hint}")


def _online(online: Assembly, given: dict[str, Any]) -> Algorithm:
    name = online.name
    objective = _objective_of(online, given)
    made, read = online.processor.batch, objective.needs.batch
    if not made.offers(read):
        raise UsageError(
            f"{name}: {online.processor.__name__} makes {made.kind}, and {describe(objective)} reads {read.kind}."
        )
    kinds = [type(objective), online.processor, UpdateSchedule, *([CriticSettings] if online.critic else [])]
    parameters = [() if kind is Combined else dataclasses.fields(kind) for kind in kinds]
    fields = [[one.name for one in own] for own in parameters]
    known = [name for own in fields for name in own]
    chosen = ["objective"] if online.objective is None else []
    more = "; how completions are sampled is set by generation="
    # `objective` where there is one already was refused with a better reason.
    refuse_unknown(name, given, [*chosen, *known], noun="hyperparameter", more=more)
    for one in itertools.chain(*parameters):
        if one.name in given:
            check_parameter(name, one, given[one.name])
    own, of_processor, of_schedule, *of_critic = [{k: given[k] for k in names if k in given} for names in fields]
    return Algorithm(
        name=name,
        objective=dataclasses.replace(objective, **own),
        processor=online.processor(**of_processor),
        schedule=UpdateSchedule(**{**online.schedule, **of_schedule}),
        critic=CriticSettings(**of_critic[0]) if of_critic else None,
        generation=online.generation,
        recipe=online.recipe,
        about=online.about,
        evidence=online.evidence,
    )


def _objective_of(online: Assembly, given: dict[str, Any]) -> Objective:
    """The objective; the user's where the algorithm takes any pairwise one."""
    name = online.name
    if online.objective is not None:
        if "objective" in given:
            raise UsageError(f"{name} has an objective of its own; `online` takes any pairwise one.")
        return get_objective(online.objective)
    chosen = given.get("objective", "dpo")
    if not isinstance(chosen, Objective):
        chosen = _from_file(chosen, {}).objective if is_target(chosen) else get_objective(chosen)
    if chosen.needs.batch is not Pairs or chosen.needs.rewards:
        kind = "a reward model's" if chosen.needs.rewards else f"on {chosen.needs.batch.kind}"
        raise UsageError(
            f"{name}: objective={describe(chosen)!r} is {kind}; it must be a loss on pairs, such as 'ipo'."
        )
    # Rewards give the scores of a pair, and no other label.
    missing = sorted(set(chosen.needs.labels) - set(sources_of("scores", Pairs.kind)))
    if missing:
        raise UsageError(f"{name}: objective={describe(chosen)!r} needs {', '.join(missing)}, which no reward gives.")
    return chosen


def _offline(text: str, hyperparameters: dict[str, Any]) -> Algorithm:
    sampled = [*assemblies(), *ALIASES]
    known = [*registry.REGISTRY, *registry.ALIASES, *registry.AMBIGUOUS, *sampled]
    if text.isidentifier() and text not in known:
        raise UsageError(f"there is no algorithm {text!r}.{did_you_mean(text, known)} `prefopt algorithms` lists all.")
    sampling = [word for word in re.findall(r"\w+", text) if word in sampled]
    if sampling:
        raise UsageError(f"{sampling[0]} samples its own data: name it alone, and give its hyperparameters apart.")
    objective = get_objective(text, **hyperparameters)
    name = text.split("(")[0].strip()
    return _assembled(objective, registry.ALIASES.get(name, name))


def _assembled(objective: Objective, name: str) -> Algorithm:
    if objective.needs.batch is Rollouts:
        raise UsageError(f"{name} learns from sampled completions with advantages: it is a part of ppo and its kin.")
    if isinstance(objective, Combined):
        about = dataclasses.replace(objective.about, formula=_formula(objective))
        recipe, _ = _declared(objective.members[0][1])
        return Algorithm(name=objective.name, objective=objective, recipe=_fitting(recipe, objective), about=about)
    recipe, evidence = _declared(objective, name)
    recipe = _fitting(recipe, objective)
    return Algorithm(name=name, objective=objective, recipe=recipe, about=objective.about, evidence=evidence)


def _declared(objective: Objective, name: str = "") -> tuple[Recipe, tuple[Evidence, ...]]:
    """Recipe and evidence of an objective: those of a name that fixes hyperparameters, else those of its class."""
    cls, entry = type(objective), registry.REGISTRY.get(name)
    if entry is not None and entry.cls is cls:
        return entry.recipe or DEFAULTS, entry.evidence
    return registry.recipe_of(cls) or DEFAULTS, registry.evidence_of(cls)


def _fitting(recipe: Recipe, objective: Objective) -> Recipe:
    """A recipe whose step is one micro-batch, where the loss compares the examples of a batch."""
    return recipe.coupled() if objective.needs.coupled else recipe


def _formula(objective: Combined) -> str:
    return " + ".join(f"{weight:g} · ({one.about.formula})" for weight, one in objective.members)
