"""What an objective is: hyperparameters with bounds, declared needs, and one method from a batch to a loss.

An objective knows nothing of models, tokens or trainers. It states in `Needs` what must be scored for it, and in
each `Term` over what its values are averaged; the trainer supplies both.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefopt.batches import Batch, Completions, Labelled, Pairs, Ranked
from prefopt.errors import UsageError

State = Mapping[str, Tensor]
"""What an objective remembers or has observed: a few named tensors."""

B = TypeVar("B", bound=Batch)


class Term(NamedTuple):
    """Values that are summed and divided by a count. The total loss is Σ weight · Σ values / count.

    Attributes:
        values: one value per row, in nats (any number of rows).
        per: the unit averaged over, one of the names in the batch's ``counts()``. It is part of the paper, so it
            stands in the paper's file: ``"example"`` is a mean over examples, ``"token"`` a mean over tokens.
        weight: a factor on the whole term.
    """

    values: Float[Tensor, " n"]
    per: str = "example"
    weight: float = 1.0


class Loss(NamedTuple):
    """What an objective returns.

    Attributes:
        terms: named terms; the trainer divides each by a denominator that spans the whole optimizer step.
        metrics: named per-row values without gradient, averaged for logging over the rows that they have.
        counts: the counts of this batch alone.
    """

    terms: Mapping[str, Term]
    metrics: Mapping[str, Float[Tensor, " n"]]
    counts: Mapping[str, int]

    def mean(self) -> Float[Tensor, ""]:
        """The scalar to minimise when this batch is the whole step."""
        return self.reduce(self.counts)

    def reduce(self, denominators: Mapping[str, float]) -> Float[Tensor, ""]:
        """Σ_terms weight · Σ values / denominators[per]; a count of zero counts as one."""
        parts = [term.weight * term.values.sum() / max(denominators[term.per], 1) for term in self.terms.values()]
        return torch.stack(parts).sum()


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What must be supplied to an objective; checked when a trainer is assembled.

    Attributes:
        batch: the container it takes.
        reference: whether it reads reference log-probabilities.
        lengths: whether it reads completion lengths.
        tokens: whether it reads per-token values (`Completions.tokens`).
        statistics: fields of `TokenLogps` beyond log-probs that it reads: ``"kl"``, ``"log_sum_p2"``.
        rewards: whether it trains a reward model: it reads `Completions.rewards` and no log-probabilities.
        values: whether it reads a critic's values (`Rollouts.values`).
        observes: what it must see of the whole step before any loss is computed, a name or a set of names.
            ``"mismatched"``: completions scored after another prompt (KTO); ``"rows"``: the policy's own log-probs
            of the step (BCO). Always a set when read: ``"rows" in needs.observes``.
        labels: label columns of the batch that it reads and that a dataset may lack (``"chosen_score"`` ...).
        optional: label columns that it reads where the batch has them.
        singles: True where a ranking of a single completion says something to it: it reads ratings, not the order.
        coupled: True where the loss of one row depends on the other rows of its micro-batch (a sort, for one), so
            that accumulation would change it.
    """

    batch: type[Batch]
    reference: bool = False
    lengths: bool = False
    tokens: bool = False
    statistics: frozenset[str] = frozenset()
    rewards: bool = False
    values: bool = False
    observes: str | frozenset[str] = frozenset()
    labels: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    singles: bool = False
    coupled: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.observes, str):
            object.__setattr__(self, "observes", frozenset({self.observes}))


@dataclass(frozen=True, kw_only=True)
class About:
    """Where an objective comes from, for `explain`, the tables and the documentation.

    Attributes:
        title: title of the paper, or what the thing is where there is none.
        year: of first publication.
        formula: the loss of one example on one line, in the notation of the docstring.
        arxiv: identifier, or an empty string.
        use: when people reach for it, in one sentence.
    """

    title: str
    year: int
    formula: str
    arxiv: str = ""
    use: str = ""


def parameter(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    below: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a hyperparameter of an objective: default, meaning, and bounds (open or closed)."""
    bounds = {"above": above, "below": below, "at_least": at_least, "at_most": at_most, "choices": choices}
    return dataclasses.field(default=default, metadata={"help": help, **bounds})


@dataclass(frozen=True, kw_only=True)
class Objective(ABC, Generic[B]):
    """A loss with its hyperparameters. Subclasses are frozen dataclasses, one paper each.

    A subclass sets ``about`` and ``needs``, declares its hyperparameters with `parameter`, and writes `terms`.
    Objectives are pure: calling one twice on the same batch gives the same loss, and no input is changed.
    """

    about: ClassVar[About]
    needs: ClassVar[Needs]
    name: ClassVar[str] = ""
    combine: "ClassVar[Callable[..., Objective]]"
    """Makes a weighted sum of objectives; `prefopt.combined`, one floor up, sets it."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_parameter(self.name or type(self).__name__, field, getattr(self, field.name))

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
        return Objective.combine((1.0, self), (1.0, other)) if isinstance(other, Objective) else NotImplemented

    def __rmul__(self, weight: float) -> "Objective":
        """The loss times a weight."""
        return Objective.combine((weight, self)) if isinstance(weight, (int, float)) else NotImplemented

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


def check_parameter(owner: str, field: dataclasses.Field, value: Any) -> None:
    """Check one hyperparameter against its declared type and bounds.

    Raises:
        UsageError: naming the owner, the parameter, the value it had and what is allowed.
    """
    meta, where = field.metadata, f"{owner}: {field.name}={value!r}"
    if meta.get("choices"):
        if value not in meta["choices"]:
            raise UsageError(f"{where} is not one of {', '.join(map(repr, meta['choices']))}.")
        return
    if field.type is bool:
        if not isinstance(value, bool):
            raise UsageError(f"{where} must be true or false.")
        return
    if field.type in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UsageError(f"{where} must be a finite number.")
        if field.type is int and value != int(value):
            raise UsageError(f"{where} must be a whole number.")
    rules = (
        ("above", lambda v, b: v > b, ">"),
        ("below", lambda v, b: v < b, "<"),
        ("at_least", lambda v, b: v >= b, ">="),
        ("at_most", lambda v, b: v <= b, "<="),
    )
    for key, holds, sign in rules:
        bound = meta.get(key)
        if bound is not None and not holds(value, bound):
            raise UsageError(f"{where} is out of range: it must be {sign} {bound}.")


def sigmoid(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """σ(x) whose gradient, too, has all of its digits for a large x, where `torch.sigmoid` takes 1 − σ(x) from 1."""
    return torch.nn.functional.logsigmoid(x).exp()


def log1mexp(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """log(1 − eˣ) for x < 0, accurate near 0 and far from it; x is clamped to at most −1e-30.

    Two branches that meet at −log 2 (Mächler 2012, "Accurately computing log(1 − exp(−|a|))"). The clamp keeps value
    and gradient finite for a probability of exactly 1.
    """
    x = x.clamp(max=-1e-30)
    near = x > -math.log(2.0)
    # Each branch gets a harmless argument where the other one is taken, or its infinite gradient would leak
    # through `where` as 0 · inf.
    small = torch.where(near, x, -1.0)
    large = torch.where(near, -1.0, x)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def masked_logsumexp(values: Float[Tensor, "..."], mask: Bool[Tensor, "..."]) -> Float[Tensor, "..."]:
    """log Σ exp(values) over the last dimension where ``mask`` holds, which must be somewhere in every row."""
    values = torch.where(mask, values, -torch.inf)
    # Relative to the largest: the gradient's weights are exp(value − sum), and a sum of thousands has few digits.
    largest = values.detach().amax(dim=-1, keepdim=True)
    return (values - largest).logsumexp(dim=-1) + largest.squeeze(-1)


def grouped_log_softmax(values: Float[Tensor, " n"], same: Bool[Tensor, " n n"]) -> Float[Tensor, " n"]:
    """log softmax of each value among those of its group, ``same[i, j]`` saying whether i and j share one.

    Taken as log σ(value − log Σ exp(the others)), which stays accurate where one value dominates.
    """
    itself = torch.eye(len(values), dtype=torch.bool, device=values.device)
    alone = ~(same & ~itself).any(dim=1)
    others = same & (~itself | alone[:, None])
    return torch.where(alone, 0.0, torch.nn.functional.logsigmoid(values - masked_logsumexp(values, others)))


def divergence_terms(
    log_p: Float[Tensor, "..."], log_q: Float[Tensor, "..."], gap: Float[Tensor, "..."] | None = None
) -> Float[Tensor, "..."]:
    """p log(p/q) − p + q for each outcome, whose sum over all outcomes is KL(p ‖ q).

    None is negative, so that nothing cancels where p is all but q; p log(p/q) alone would leave the last digits.
    ``gap`` is log p − log q where it is known to more digits than the difference has.
    """
    gap = log_p - log_q if gap is None else gap
    near = gap.abs() < 0.5
    # p (e^−x − 1 + x) by the series of the bracket, to the last digit of float64.
    x = torch.where(near, gap, 0.0)
    series = torch.ones_like(x)
    for n in range(15, 2, -1):
        series = 1 - x / n * series
    p = log_p.exp()
    return torch.where(near, p * x**2 / 2 * series, p * gap - p + log_q.exp())


def keyed_uniform(*keys: Int[Tensor, "..."] | int) -> Float[Tensor, "..."]:
    """Uniform numbers in (0, 1) that depend on integer keys (broadcast together) and on nothing else.

    A draw keyed by the id of an example is the same in whatever micro-batch or on whatever rank the example falls.
    splitmix64 (Steele et al. 2014) is applied once for each key.
    """
    state = torch.zeros((), dtype=torch.int64)
    for key in keys:
        # The constants are 0x9E37…, 0xBF58… and 0x94D0… as signed numbers; products wrap around at 64 bits.
        state = (state ^ torch.as_tensor(key, dtype=torch.int64)) - 7046029254386353131
        state = (state ^ _shift(state, 30)) * -4658895280553007687
        state = (state ^ _shift(state, 27)) * -7723592293110705685
        state = state ^ _shift(state, 31)
    return (_shift(state, 12).double() + 0.5) / 2**52


def _shift(bits: Int[Tensor, "..."], by: int) -> Int[Tensor, "..."]:
    """Shift right without copying the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


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
