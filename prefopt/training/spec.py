"""One schema for YAML files, flags and Python: what a training run is."""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefopt.core.errors import UsageError, did_you_mean, nearest


class _Loader(yaml.SafeLoader):
    """Reads numbers and booleans as YAML 1.2 does: 5e-6 is a number, and `no` is a word (as in save_strategy: no)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":bool", ":float"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|false|True|False|TRUE|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+.0123456789"),
)


def _without_doubles(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping; a key that stands in it twice is refused, where PyYAML would drop the first."""
    seen: set[Any] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
        seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _without_doubles)


class DataConfig(BaseModel):
    """Where the data is; every further key is a field of `DataSettings`."""

    model_config = ConfigDict(extra="allow")

    train: str | None = None
    eval: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class RunConfig(BaseModel):
    """A training run.

    Attributes:
        algorithm: its name.
        hyperparameters: of the algorithm, by the names that `prefopt explain` lists.
        model, adapter, lora, reference, reference_cache, reward, share_prompts, trust_remote_code: as in
            `prefopt.Trainer`.
        data: ``train``, ``eval`` and fields of `DataSettings`.
        generation: fields of `GenerationSettings`.
        args: fields of ``transformers.TrainingArguments``.
        watch: arguments of `prefopt.Watch`, which looks out for reward hacking.
        out: folder for the result; checkpoints go to ``out/checkpoints``.
        resume: continue from the newest checkpoint.
    """

    model_config = ConfigDict(extra="forbid")

    algorithm: str
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    model: str
    adapter: str | None = None
    lora: dict[str, Any] = Field(default_factory=dict)
    reference: str | None = None
    reference_cache: str | None = None
    reward: str | list[Any] | dict[str, Any] | None = None
    data: DataConfig = Field(default_factory=DataConfig)
    generation: dict[str, Any] = Field(default_factory=dict)
    args: dict[str, Any] = Field(default_factory=dict)
    watch: dict[str, Any] = Field(default_factory=dict)
    out: str
    resume: bool = False
    share_prompts: bool = True
    trust_remote_code: bool = False

    @classmethod
    def build(cls, values: dict[str, Any]) -> Self:
        """Validate.

        Raises:
            UsageError: naming the key and what is wrong with it.
        """
        return build_config(cls, values)


Config = TypeVar("Config", bound=BaseModel)


def build_config(kind: type[Config], values: dict[str, Any]) -> Config:
    """Validate.

    Args:
        kind: of the config.
        values: its sections.

    Raises:
        UsageError: naming the key and what is wrong with it.
    """
    check_sections(kind, values)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise UsageError(f"{where} is missing: give --{where}, or {where}: in the config file.") from None
        raise UsageError(f"config: {where}={first['input']!r}: {first['msg'].lower()}.") from None


def check_sections(kind: type[BaseModel], values: dict[str, Any], where: str = "config") -> None:
    """Refuse what is no section.

    Args:
        kind: of the config.
        values: its sections.
        where: they come from, for messages.

    Raises:
        UsageError: naming the key, and the nearest section or the nearest field of a section.
    """
    for key in values:
        if key not in kind.model_fields:
            near = did_you_mean(str(key), kind.model_fields) or _belongs(str(key), values)
            raise UsageError(f"{where}: there is no section {key!r}.{near} It has {', '.join(kind.model_fields)}.")


def _belongs(key: str, values: dict[str, Any]) -> str:
    """The section that has a field of nearly this name, as part of a message; empty where none has."""
    if not isinstance(values.get("algorithm"), str):
        return ""
    for section, known in flag_sections(values["algorithm"]).items():
        near = nearest(key, known)
        if near:
            return f" Did you mean {near!r} in section {section!r}?"
    return ""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UsageError: no such file, not YAML, or not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"config file {path} does not exist.")
    try:
        values = yaml.load(path.read_text(), _Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"config file {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"config file {path} must hold a mapping with keys such as model: and data:.")
    return values


def parse_value(text: str) -> Any:
    """A flag's text as a value: numbers, true/false/null, lists and mappings as YAML 1.2 reads them, else text."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def parse_rewards(texts: list[str]) -> Any:
    """What ``--reward``, given once or several times, stands for.

    A text that begins with ``[`` or ``{`` is read as YAML: ``[NAME, 0.5]`` is a reward with its weight, and
    ``{judge: URL, model: NAME}`` a mapping as in a config file. Any other is a name, and stays as it is.

    Raises:
        UsageError: such a text is not YAML.
    """
    rewards = [parse_value(text) if text.lstrip()[:1] in ("[", "{") else text for text in texts]
    for text, reward in zip(texts, rewards, strict=True):
        if reward == text and text.lstrip()[:1] in ("[", "{"):
            raise UsageError(f"--reward {text!r} is not YAML: close its brackets, and put a space after each colon.")
    return rewards[0] if len(rewards) == 1 else rewards


def assign(values: dict[str, Any], dotted: str) -> None:
    """Put ``section.key=value`` into nested ``values``.

    Raises:
        UsageError: it is not of that form.
    """
    key, sign, text = dotted.partition("=")
    if not sign or not key:
        raise UsageError(f"--set {dotted!r} must be of the form section.key=value.")
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise UsageError(f"--set {dotted!r}: {part} is not a section.")
    values[last] = parse_value(text)


def assign_flag(values: dict[str, Any], flag: str, text: str, algorithm: str) -> None:
    """Put a free flag such as ``--beta 0.2`` into the section that has a field of that name.

    Hyperparameters of the algorithm come first, then training arguments, data and generation settings.

    Raises:
        UsageError: no section has such a field; the nearest name is suggested.
    """
    name = flag.lstrip("-").replace("-", "_")
    sections = flag_sections(algorithm)
    for section, known in sections.items():
        if name in known:
            values.setdefault(section, {})[name] = parse_value(text)
            return
    everything = [field for known in sections.values() for field in known]
    everything += list(RunConfig.model_fields)
    own = ", ".join(sections["hyperparameters"]) or "none"
    if any(sign in algorithm for sign in "+*"):
        own = "those of its parts, in brackets, as in 'dpo(beta=0.2) + 0.2*sft'"
    near = did_you_mean(name, everything).replace("_", "-")
    raise UsageError(f"there is no option {flag}.{near} The hyperparameters of {algorithm}: {own}.")


def flag_sections(algorithm: str) -> dict[str, list[str]]:
    """Which flags an algorithm takes, by section of the config."""
    from transformers import TrainingArguments

    from prefopt.algorithms import get_algorithm
    from prefopt.data import DataSettings
    from prefopt.rollouts import GenerationSettings

    resolved = get_algorithm(algorithm)
    sections = {
        "hyperparameters": list(resolved.hyperparameters),
        "args": [field.name for field in dataclasses.fields(TrainingArguments)],
        "data": [field.name for field in dataclasses.fields(DataSettings)],
    }
    if resolved.online:
        sections["generation"] = [field.name for field in dataclasses.fields(GenerationSettings)]
    return sections


def make_trainer(config: RunConfig) -> Any:
    """The `prefopt.Trainer` of a run."""
    from prefopt.algorithms import get_algorithm
    from prefopt.training.trainer import Trainer

    if config.data.train is None:
        raise UsageError("data is missing: give --data, or data: {train: ...} in the config file.")
    return Trainer(
        model=config.model,
        algorithm=get_algorithm(config.algorithm, **config.hyperparameters),
        train_dataset=config.data.train,
        eval_dataset=config.data.eval,
        adapter=config.adapter,
        lora=config.lora,
        reference=config.reference,
        reference_cache=config.reference_cache,
        reward=config.reward,
        data=config.data.settings,
        generation=config.generation or None,
        callbacks=[make_watch(config.watch)] if config.watch else (),
        args={"output_dir": str(Path(config.out) / "checkpoints"), **config.args},
        share_prompts=config.share_prompts,
        trust_remote_code=config.trust_remote_code,
    )


def make_watch(settings: dict[str, Any]) -> Any:
    """The `prefopt.Watch` of a run.

    Raises:
        UsageError: an unknown argument, with the nearest name.
    """
    from prefopt.training.watch import Watch

    known = list(inspect.signature(Watch).parameters)
    for key in settings:
        if key not in known:
            raise UsageError(f"watch has no setting {key!r}.{did_you_mean(key, known)} It has {', '.join(known)}.")
    return Watch(**settings)
