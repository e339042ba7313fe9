"""Run files and flags: YAML, assignments such as ``section.key=value``, and free flags such as ``--beta 0.2``."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from prefopt.core.arguments import file_keys, read_arguments, sections, settings_of
from prefopt.core.errors import UsageError, did_you_mean, nearest
from prefopt.core.settings import refuse_unknown
from prefopt.training.spec import RunFile

FREE = ("args", "data", "generation")
"""Sections whose settings are flags too, after the hyperparameters; of two with one name the first is meant."""


def read_run(values: Mapping[str, Any], where: str = "config") -> RunFile:
    """The run that the mapping of a file describes.

    Raises:
        UsageError: See `read_arguments`; an unknown key is reported with the section that it belongs to.
    """
    return read_arguments(RunFile, values, where, hint=lambda key: _belongs(key, values))


def refuse_keys(values: Mapping[str, Any], where: str) -> None:
    """Refuse the keys of a file that are none of a run, before flags are added to them."""
    refuse_unknown(where, values, sections(RunFile), hint=lambda key: _belongs(key, values))


def _belongs(key: str, values: Mapping[str, Any]) -> str:
    """The section that has a setting of nearly this name, as a sentence; empty where none has."""
    if not isinstance(values.get("algorithm"), str):
        return ""
    for section, known in flag_sections(values["algorithm"]).items():
        near = nearest(key, known)
        if near:
            return f" Did you mean {near!r} in section {section!r}?"
    return ""


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


def section_of(values: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """A section of a run, to write into; it is added where it is not there or empty.

    Args:
        values: The mapping that has the section.
        name: The section's name.
        where: What writes into it, for messages.

    Raises:
        UsageError: The file has something else there.
    """
    if values.get(name) is None:
        values[name] = {}
    if not isinstance(values[name], dict):
        raise UsageError(f"{where}: {name}={values[name]!r} is not a section.")
    return values[name]


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
        values = section_of(values, part, f"--set {dotted!r}")
    values[last] = parse_value(text)


def assign_flag(values: dict[str, Any], flag: str, text: str, algorithm: str, among: tuple[str, ...] = FREE) -> None:
    """Put a free flag such as ``--beta 0.2`` into the section that has a setting of that name.

    Args:
        values: The mapping of the run, which is changed.
        flag: The flag.
        text: Its value.
        algorithm: The algorithm, whose hyperparameters come first.
        among: The sections that are tried after them.

    Raises:
        UsageError: No section has such a setting; the nearest name is suggested.
    """
    name = flag.lstrip("-").replace("-", "_")
    known = flag_sections(algorithm, among)
    for section, names in known.items():
        if name in names:
            section_of(values, section, flag)[name] = parse_value(text)
            return
    everything = [one for names in known.values() for one in names] + sections(RunFile)
    own = ", ".join(known["hyperparameters"]) or "none"
    if any(sign in algorithm for sign in "+*"):
        own = "those of its parts, in brackets, as in 'dpo(beta=0.2) + 0.2*sft'"
    near = did_you_mean(name, everything).replace("_", "-")
    raise UsageError(f"there is no option {flag}.{near} The hyperparameters of {algorithm}: {own}.")


def flag_sections(algorithm: str, among: tuple[str, ...] = FREE) -> dict[str, list[str]]:
    """Which flags an algorithm takes, by section of the file."""
    from prefopt.algorithms import get_algorithm

    resolved, keys = get_algorithm(algorithm), file_keys(RunFile)
    found = {"hyperparameters": list(resolved.hyperparameters)}
    for section in among:
        if section != "generation" or resolved.online:
            found[section] = [one.name for one in dataclasses.fields(settings_of(keys[section])) if one.init]
    return found


def split_free(free: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Words, and flags with their values (``--flag value`` or ``--flag=value``)."""
    words: list[str] = []
    flags: list[tuple[str, str]] = []
    rest = list(free)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            words.append(flag)
            continue
        flag, sign, value = flag.partition("=")
        if not sign:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"{flag} needs a value.")
            value = rest.pop(0)
        flags.append((flag, value))
    return words, flags
