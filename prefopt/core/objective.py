"""What an objective is: hyperparameters with bounds, declared needs, and one method from a batch to a loss.

An objective knows nothing of models, tokens or trainers. It states in `Needs` what must be scored for it, and in
each `Term` over what its values are averaged; the trainer supplies both. A weighted sum of objectives is an objective
too, and is made with `+` and `*`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from prefopt.core.batches import Batch, Completions, Labelled, Pairs, Ranked
from prefopt.core.errors import UsageError
from prefopt.core.evidence import Evidence
from prefopt.core.labels import sources_of
from prefopt.core.loss import Loss, State, Term
from prefopt.core.needs import About, Needs
from prefopt.core.recipe import Recipe
from prefopt.core.settings import check_settings

B = TypeVar("B", bound=Batch)


@dataclass(frozen=True, kw_only=True)
class Objective(ABC, Generic[B]):
    """A loss with its hyperparameters. Subclasses are frozen dataclasses, one paper each.

    A subclass sets ``about`` and ``needs``, declares its hyperparameters with `parameter`, and writes `terms`. It may
    declare its ``recipe`` and the ``evidence`` that it is the paper's loss; a subclass of it inherits neither, for
    it is another loss.
    Objectives are pure: calling one twice on the same batch gives the same loss, and no input is changed.
    """

    about: ClassVar[About]
    needs: ClassVar[Needs]
    recipe: ClassVar[Recipe | None] = None
    evidence: ClassVar[tuple[Evidence, ...]] = ()
    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_settings(self)

    @abstractmethod
    def terms(self, batch: B, state: State) -> Mapping[str, Term]:
        """The paper's loss, row by row. ``state`` is what `prepare` returned for this step."""

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """Implicit reward of each completion, in nats: β·log(π/π_ref) unless the paper says otherwise.

        Of an objective that trains a reward model it is what the model said.
        """
        if self.needs.rewards:
            return completions.rewards
        beta = getattr(self, "beta", None)
        if beta is None or not self.needs.reference:
            raise NotImplementedError(f"{type(self).__name__} must say what its implicit reward is")
        return beta * completions.log_ratio

    def init_state(self) -> dict[str, Tensor]:
        """What is remembered between steps; saved in checkpoints. Empty for an objective without a memory."""
        return {}

    def observe(self, batch: B) -> dict[str, Tensor]:
        """Per-row values, without gradient, that `prepare` must see of the whole step.

        They are concatenated over micro-batches and ranks, so that neither changes what is prepared.
        """
        return {}

    def prepare(self, state: State, observed: Mapping[str, Tensor], *, frozen: bool = False) -> State:
        """The state of this step from the remembered one and what the whole step shows.

        Keys of `init_state` are remembered after the optimizer step; other keys serve this step only. With
        ``frozen`` (evaluation) remembered values are used as they are.
        """
        return state

    def metrics(self, batch: B, state: State) -> dict[str, Tensor]:
        """Per-row values to log. The usual ones for pairs, labelled and ranked rows; a subclass may add its own."""
        if isinstance(batch, Pairs):
            return _pair_metrics(self, batch)
        if isinstance(batch, Labelled):
            return _labelled_metrics(self, batch)
        if isinstance(batch, Ranked):
            return _pair_metrics(self, batch.as_pairs())
        return {"logps": batch.rows.logps}

    def view(self, batch: Batch) -> B:
        """The batch as the container that this objective takes."""
        return batch.view(self.needs.batch)

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """The units that its terms may be averaged over, by name, known before any scoring."""
        return self.view(batch).counts()

    def __add__(self, other: "Objective") -> "Objective":
        """The sum of two losses, as one objective: ``dpo + 0.2 * sft``."""
        return combine((1.0, self), (1.0, other)) if isinstance(other, Objective) else NotImplemented

    def __rmul__(self, weight: float) -> "Objective":
        """The loss times a weight."""
        return combine((weight, self)) if isinstance(weight, (int, float)) else NotImplemented

    def __call__(self, batch: B, state: State | None = None) -> Loss:
        """The loss of a batch.

        Args:
            batch: the container named in ``needs.batch``, or one that offers a view of it.
            state: from `prepare`; without it the batch counts as a whole step of its own, starting from
                `init_state`.

        Returns:
            A `Loss`; ``.mean()`` is the scalar to minimise.

        Raises:
            UsageError: the batch lacks something that the objective reads.
        """
        batch = self.view(batch)
        self._check_needs(batch)
        if state is None:
            state = self.prepare(self.init_state(), self.observe(batch.detach()))
        terms = self.terms(batch, state)
        with torch.no_grad():
            metrics = self.metrics(batch.detach(), state)
        return Loss(terms=terms, metrics=metrics, counts=self.counts(batch))

    def _check_needs(self, batch: Batch) -> None:
        rows, needs, name = batch.rows, self.needs, self.name or type(self).__name__
        if needs.rewards and rows.rewards is None:
            raise UsageError(f"{name} trains a reward model: pass rewards for every completion.")
        if needs.values and getattr(batch, "values", None) is None:
            raise UsageError(f"{name} trains a critic: pass its values for every token.")
        if needs.reference and rows.ref_logps is None:
            raise UsageError(f"{name} needs reference log-probabilities: pass ref_logps for every completion.")
        if needs.lengths and bool((rows.lengths < 1).any()):
            raise UsageError(f"{name} normalises by length: every completion needs its token count (at least 1).")
        parts = (batch.chosen, batch.rejected) if isinstance(batch, Pairs) else (rows,)
        if needs.tokens and any(part.tokens is None for part in parts):
            raise UsageError(f"{name} needs per-token log-probabilities: build its batch from TokenLogps.")
        for key in sorted(needs.statistics):
            if any(part.tokens is None or getattr(part.tokens, key) is None for part in parts):
                raise UsageError(f"{name} needs the per-token statistic {key!r}: pass it in TokenLogps.")
        for label in needs.labels:
            if getattr(batch, label, None) is None:
                raise UsageError(f"{name} needs {label!r} for every example.")


def _pair_metrics(objective: Objective, batch: Pairs) -> dict[str, Tensor]:
    chosen, rejected = objective.reward(batch.chosen), objective.reward(batch.rejected)
    margin = chosen - rejected
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": margin,
        # A tie counts one half.
        "rewards/accuracies": (margin > 0).float() + 0.5 * (margin == 0).float(),
        **_logps(objective, {"logps/chosen": batch.chosen, "logps/rejected": batch.rejected}),
    }


def _labelled_metrics(objective: Objective, batch: Labelled) -> dict[str, Tensor]:
    reward, desirable = objective.reward(batch.completions), batch.desirable
    parts = {"logps/chosen": batch.completions[desirable], "logps/rejected": batch.completions[~desirable]}
    return {
        "rewards/chosen": reward[desirable],
        "rewards/rejected": reward[~desirable],
        **_logps(objective, parts),
    }


def _logps(objective: Objective, parts: Mapping[str, Completions]) -> dict[str, Tensor]:
    """Log-probabilities to log; a reward model has none."""
    return {} if objective.needs.rewards else {name: rows.logps for name, rows in parts.items()}


# ---- weighted sums


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
    labels = [label for need in needs for name in need.labels for label in sources_of(name, container.kind)]
    return Needs(
        batch=container,
        reference=any(need.reference for need in needs),
        lengths=any(need.lengths for need in needs),
        tokens=any(need.tokens for need in needs),
        statistics=frozenset().union(*(need.statistics for need in needs)),
        values=any(need.values for need in needs),
        rewards=any(need.rewards for need in needs),
        observes=frozenset().union(*(need.observes for need in needs)),
        detaches=tuple(dict.fromkeys(what for need in needs for what in need.detaches)),
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


def _prefixed(part: Part, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{part.key}/{name}": value for name, value in values.items()}


def _inside(part: Part, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{part.key}/"
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}
