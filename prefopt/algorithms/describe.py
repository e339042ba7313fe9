"""From an algorithm to the card that says what it is."""

import dataclasses
import inspect

from prefopt.algorithms import assembly
from prefopt.algorithms.algorithm import Algorithm, all_names, get_algorithm
from prefopt.algorithms.card import Card, Hyperparameter
from prefopt.core import registry
from prefopt.core.console import say
from prefopt.core.evidence import Evidence


def all_cards() -> dict[str, Card]:
    """The cards of all algorithms, those of plug-ins included. One that cannot be made is named and left out."""
    cards = {}
    for name in all_names():
        try:
            cards[name] = describe(get_algorithm(name))
        except Exception as error:  # of a plug-in: a loss that is not there, for one
            say(f"the algorithm {name!r} cannot be used and is left out: {' '.join(str(error).split())}")
    return cards


def describe(algorithm: Algorithm) -> Card:
    """The card of an algorithm."""
    about = algorithm.about
    return Card(
        name=algorithm.name,
        data=algorithm.data_kind,
        online=algorithm.online,
        reference=algorithm.needs_reference,
        title=about.title,
        year=about.year,
        arxiv=about.arxiv,
        formula=about.formula,
        use=about.use,
        aliases=_aliases(algorithm),
        parts=algorithm.parts,
        evidence=_evidence(algorithm),
        recipe=algorithm.recipe,
        hyperparameters=_hyperparameters(algorithm),
        documented=tuple(f"{cls.__module__}:{cls.__qualname__}" for cls in _documented(algorithm)),
    )


def docstrings(algorithm: Algorithm) -> list[str]:
    """The docstrings of the classes that a card names."""
    return [_own_docstring(cls) for cls in _documented(algorithm)]


def _own_docstring(cls: type) -> str:
    """What a class says of itself: neither what its base says, which is about another loss, nor a signature."""
    text = inspect.cleandoc(vars(cls).get("__doc__") or "")
    return "" if text.startswith(f"{cls.__name__}(") else text


def _documented(algorithm: Algorithm) -> list[type]:
    """What makes the examples, and the loss; the parts of a sum are explained by themselves."""
    return [type(one) for one in (algorithm.processor, algorithm.objective) if one is not None and not algorithm.parts]


def _aliases(algorithm: Algorithm) -> tuple[str, ...]:
    known = assembly.ALIASES if algorithm.online else registry.ALIASES
    return tuple(alias for alias, target in known.items() if target == algorithm.name)


def _evidence(algorithm: Algorithm) -> tuple[str, ...]:
    if not algorithm.online:
        return tuple(map(_line, algorithm.evidence))
    of_loss = registry.evidence_of(type(algorithm.objective))
    own = map(_line, algorithm.evidence) if algorithm.evidence else ["of the examples: none declared"]
    return (*own, *(f"of the loss {algorithm.objective.name}: {_line(e)}" for e in of_loss))


def _line(evidence: Evidence) -> str:
    return f"{evidence.kind}: {evidence.what}"


def _hyperparameters(algorithm: Algorithm) -> tuple[Hyperparameter, ...]:
    found = [(field, getattr(one, field.name)) for one in algorithm.settings for field in dataclasses.fields(one)]
    rows = [
        Hyperparameter(
            field.name, repr(value), _bounds(field), field.metadata.get("help", ""), field.metadata.get("tune")
        )
        for field, value in found
    ]
    if algorithm.takes_objective:
        help = "the pairwise loss, with its hyperparameters in brackets or beside it"
        rows.insert(0, Hyperparameter("objective", "'dpo'", "", help))
    return tuple(rows)


def _bounds(field: dataclasses.Field) -> str:
    meta = field.metadata
    if meta.get("choices"):
        return f" (one of {', '.join(meta['choices'])})"
    signs = {"above": ">", "at_least": "≥", "below": "<", "at_most": "≤"}
    parts = [f"{sign} {meta[key]:g}" for key, sign in signs.items() if meta.get(key) is not None]
    return f" ({', '.join(parts)})" if parts else ""
