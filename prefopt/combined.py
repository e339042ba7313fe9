"""Weighted sums of objectives: ``dpo + 0.2 * sft`` in Python, ``"dpo + 0.2*sft"`` in YAML and on the command line."""

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from prefopt import registry
from prefopt.batches import Batch, Completions, Pairs, Ranked
from prefopt.errors import UsageError
from prefopt.objective import About, Needs, Objective, State, Term


class Part(NamedTuple):
    """One summand. ``key`` is its name inside the sum: the prefix of its terms, counts, metrics and state."""

    key: str
    weight: float
    objective: Objective


@dataclass(frozen=True, kw_only=True)
class Combination(Objective[Batch]):
    """A weighted sum Σ w_k · L_k whose loss and gradient are those of its parts, weighted and added.

    Each part averages over its own units, sees the batch as its own container, and keeps its own state. The implicit
    reward is the first part's. A subclass says what the `parts` are.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "needs", merge_needs(self.parts))

    @property
    def parts(self) -> tuple[Part, ...]:
        raise NotImplementedError

    def view(self, batch: Batch) -> Batch:
        """The batch itself where every part can read it, so that nothing is lost on the way."""
        if all(type(batch).offers(part.objective.needs.batch) for part in self.parts):
            return batch
        return batch.view(self.needs.batch)

    def counts(self, batch: Batch) -> Mapping[str, int]:
        batch = self.view(batch)
        counts = dict(batch.counts())
        for part in self.parts:
            counts |= _prefixed(part, part.objective.counts(batch))
        return counts

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """The implicit reward of the first part."""
        return self.parts[0].objective.reward(completions)

    def init_state(self) -> dict[str, Tensor]:
        return self._join({part.key: part.objective.init_state() for part in self.parts})

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        return self._join({part.key: part.objective.observe(part.objective.view(batch)) for part in self.parts})

    def prepare(self, state: State, observed: Mapping[str, Tensor], *, frozen: bool = False) -> State:
        return self._join(
            {
                part.key: part.objective.prepare(_inside(part, state), _inside(part, observed), frozen=frozen)
                for part in self.parts
            }
        )

    def terms(self, batch: Batch, state: State) -> Mapping[str, Term]:
        terms = {}
        for part in self.parts:
            for name, term in part.objective.terms(part.objective.view(batch), _inside(part, state)).items():
                per, weight = f"{part.key}/{term.per}", part.weight * term.weight
                terms[f"{part.key}/{name}"] = Term(term.values, per, weight)
        return terms

    def metrics(self, batch: Batch, state: State) -> dict[str, Tensor]:
        """The usual metrics from the first part's reward, and every part's own under its key."""
        metrics = super().metrics(batch, state)
        for part in self.parts:
            metrics |= _prefixed(part, part.objective.metrics(part.objective.view(batch), _inside(part, state)))
        return metrics

    def _check_needs(self, batch: Batch) -> None:
        for part in self.parts:
            part.objective._check_needs(part.objective.view(batch))

    def _join(self, by_part: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {f"{key}/{name}": value for key, values in by_part.items() for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class Combined(Combination):
    """The weighted sum of ``members``, pairs of a weight (at least 0) and an objective. Sums of sums are flat."""

    about = About(title="A weighted sum of objectives", year=0, formula="Σ_k w_k L_k")

    members: tuple[tuple[float, Objective], ...]

    def __post_init__(self) -> None:
        for weight, objective in self.members:
            if isinstance(weight, bool) or not math.isfinite(weight) or weight < 0:
                raise UsageError(f"the weight of {describe(objective)} is {weight!r}; it must be a number >= 0.")
        super().__post_init__()
        object.__setattr__(self, "name", describe(self))

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        parts: list[Part] = []
        for weight, objective in self.members:
            name = objective.name or type(objective).__name__
            again = sum(part.key.split("#")[0] == name for part in parts)
            parts.append(Part(f"{name}#{again + 1}" if again else name, weight, objective))
        return tuple(parts)


def combine(*members: tuple[float, Objective]) -> Combined:
    """Σ weight · objective; a member that is such a sum itself is multiplied out."""
    flat: list[tuple[float, Objective]] = []
    for weight, objective in members:
        inner = objective.members if isinstance(objective, Combined) else ((1.0, objective),)
        flat += [(weight * w, o) for w, o in inner]
    return Combined(members=tuple(flat))


Objective.combine = staticmethod(combine)


def build(text: str, **hyperparameters: Any) -> Objective:
    """The objective that ``text`` names: ``"dpo"``, ``"dpo(beta=0.2)"``, ``"dpo(beta=0.2) + 0.2*sft"``.

    Raises:
        UsageError: the text cannot be read, or what it names cannot be built or combined.
    """
    known = (registry.REGISTRY, registry.ALIASES, registry.AMBIGUOUS)
    if any(text in names for names in known) or not (any(sign in text for sign in "+*") or _DIFFERENCE.search(text)):
        return registry.build(text, **hyperparameters)
    if hyperparameters:
        inside = ", ".join(f"{key}={value}" for key, value in hyperparameters.items())
        raise UsageError(f"say which part of {text!r} is meant: write its hyperparameters in brackets, ({inside}).")
    try:
        return _build_node(ast.parse(text.strip(), mode="eval").body, text)
    except SyntaxError:
        raise UsageError(_CANNOT_READ.format(text)) from None


_DIFFERENCE = re.compile(r"[\w)]\s+-\s*\w")
"""A minus sign between two objectives, which is no hyphen in a name."""
_NO_DIFFERENCE = (
    "{!r} takes one loss from another: weights are at least 0, for less of a loss has no minimum. "
    "Write a sum, such as 'dpo + 0.2*sft'."
)
_CANNOT_READ = "cannot read {!r}; write a combination as 'dpo(beta=0.2) + 0.2*sft'."


def _build_node(node: ast.expr, text: str) -> Objective:
    if isinstance(node, (ast.Name, ast.Call)):
        return registry.build(ast.unparse(node))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return combine((1.0, _build_node(node.left, text)), (1.0, _build_node(node.right, text)))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and isinstance(node.left, ast.Constant):
        weight = node.left.value
        if isinstance(weight, (int, float)):
            return combine((weight, _build_node(node.right, text)))
    negative = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub)
    raise UsageError((_NO_DIFFERENCE if negative else _CANNOT_READ).format(text))


def describe(objective: Objective) -> str:
    """The text from which `build` makes this objective again."""
    if isinstance(objective, Combined):
        parts = ((weight, describe(member)) for weight, member in objective.members)
        return " + ".join(text if weight == 1 else f"{weight:g}*{text}" for weight, text in parts)
    changed = [
        f"{field.name}={getattr(objective, field.name)!r}"
        for field in fields(objective)
        if getattr(objective, field.name) != field.default
    ]
    name = objective.name or type(objective).__name__
    return f"{name}({', '.join(changed)})" if changed else name


def merge_needs(parts: tuple[Part, ...]) -> Needs:
    """What a sum needs: the union of what its parts need, in one container from which all of them can be read."""
    needs = [part.objective.needs for part in parts]
    container = _container(parts)
    if len({need.rewards for need in needs}) == 2:
        trains = next(part.key for part in parts if part.objective.needs.rewards)
        other = next(part.key for part in parts if not part.objective.needs.rewards)
        raise UsageError(
            f"{trains} trains a reward model and {other} a policy: they cannot be summed. Train one after the other."
        )
    labels = [label for need in needs for name in need.labels for label in _label(container, need.batch, name)]
    return Needs(
        batch=container,
        reference=any(need.reference for need in needs),
        lengths=any(need.lengths for need in needs),
        tokens=any(need.tokens for need in needs),
        statistics=frozenset().union(*(need.statistics for need in needs)),
        values=any(need.values for need in needs),
        rewards=any(need.rewards for need in needs),
        observes=frozenset().union(*(need.observes for need in needs)),
        labels=tuple(dict.fromkeys(labels)),
        singles=all(need.singles for need in needs),
        optional=tuple(dict.fromkeys(label for need in needs for label in need.optional)),
        coupled=any(need.coupled for need in needs),
    )


def _container(parts: tuple[Part, ...]) -> type[Batch]:
    wanted = [part.objective.needs.batch for part in parts]
    # Ranked first: pairs become ranked without loss, while a ranking read as pairs would stay pairs for good.
    candidates = sorted(dict.fromkeys(wanted), key=lambda kind: kind is not Ranked)
    for container in [*candidates, Pairs]:
        if not all(container.offers(kind) for kind in wanted):
            continue
        for part in parts:
            if "mismatched" in part.objective.needs.observes and part.objective.needs.batch is not container:
                raise UsageError(
                    f"{part.key} needs completions scored after another prompt, which a batch of {container.kind} does "
                    f"not carry; combine it with objectives on {part.objective.needs.batch.kind} data only."
                )
        return container
    kinds = ", ".join(f"{part.key} takes {part.objective.needs.batch.kind}" for part in parts)
    raise UsageError(f"these cannot be combined, for no batch serves all of them: {kinds}.")


def _label(container: type[Batch], kind: type[Batch], label: str) -> tuple[str, ...]:
    """The columns of ``container`` from which its view as ``kind`` has ``label``."""
    if container is Pairs and kind is Ranked and label == "scores":
        return ("chosen_score", "rejected_score")
    if container is Ranked and label in ("chosen_score", "rejected_score"):
        return ("scores",)
    return (label,)


def _prefixed(part: Part, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{part.key}/{name}": value for name, value in values.items()}


def _inside(part: Part, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{part.key}/"
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}
