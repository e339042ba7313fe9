"""What an objective sees: log-probabilities of completions, grouped the way its data is grouped.

A batch holds summed log-probabilities; token ids, prompts and padding have been left behind in `scoring`.
All containers are frozen dataclasses over tensors of one device. Their *counts* (how many examples, tokens,
desirable rows ...) depend on lengths and labels alone, so that the trainer knows the denominators of a whole
optimizer step before the first forward pass of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefopt.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TokenLogps:
    """Per-token values of n completions, right-padded to t positions.

    Attributes:
        mask: True where a token counts. Padding is False, and so are the tokens inside a completion that the
            policy did not write (tool results, user turns): the mask may have holes.
        logps: log π(y_t | x, y_<t) in nats. Values outside the mask are undefined, and may be NaN.
        ref_logps: the same under the reference.
        kl: KL(π_ref(·|y_<t) ‖ π(·|y_<t)) over the whole vocabulary, differentiable (TDPO).
        log_sum_p2: log Σ_v π(v|y_<t)², detached (WPO).
    """

    mask: Bool[Tensor, " n t"]
    logps: Float[Tensor, " n t"]
    ref_logps: Float[Tensor, " n t"] | None = None
    kl: Float[Tensor, " n t"] | None = None
    log_sum_p2: Float[Tensor, " n t"] | None = None

    def sum(self, values: Float[Tensor, " n t"]) -> Float[Tensor, " n"]:
        """Sum ``values`` over the tokens that count; what lies outside the mask is never read."""
        return torch.where(self.mask, values, 0.0).sum(dim=1)

    def __getitem__(self, rows: Any) -> Self:
        return _index(self, rows)


@dataclass(frozen=True, kw_only=True)
class Completions:
    """n completions, each reduced to its log-probability.

    Attributes:
        logps: log π(y | x) in nats, summed over the tokens that count (EOS included).
        lengths: how many tokens count.
        ref_logps: log π_ref(y | x), or None where no reference was scored.
        tokens: per-token values, only where the objective declares that it needs them.
    """

    logps: Float[Tensor, " n"]
    lengths: Int[Tensor, " n"]
    ref_logps: Float[Tensor, " n"] | None = None
    tokens: TokenLogps | None = None

    def __len__(self) -> int:
        return self.lengths.shape[0]

    def __getitem__(self, rows: Any) -> Self:
        """Select rows by a slice, an index tensor or a boolean tensor."""
        return _index(self, rows)

    @property
    def mean(self) -> Float[Tensor, " n"]:
        """m(y) = log π(y|x) / len(y); an empty completion counts as length 1 and so has mean 0."""
        return self.logps / self.lengths.clamp(min=1)

    @property
    def log_ratio(self) -> Float[Tensor, " n"]:
        """s(y) = log π(y|x) − log π_ref(y|x)."""
        if self.ref_logps is None:
            raise UsageError("these completions carry no reference log-probabilities; pass ref_logps.")
        return self.logps - self.ref_logps

    @classmethod
    def from_tokens(cls, tokens: TokenLogps) -> Self:
        """Sum per-token values into completions that keep the tokens."""
        return cls(
            logps=tokens.sum(tokens.logps),
            lengths=tokens.mask.sum(dim=1),
            ref_logps=None if tokens.ref_logps is None else tokens.sum(tokens.ref_logps),
            tokens=tokens,
        )

    @classmethod
    def unscored(cls, lengths: Int[Tensor, " n"]) -> Self:
        """Completions of which only the lengths are known; enough to count, not to train."""
        return cls(logps=torch.zeros(lengths.shape, device=lengths.device), lengths=lengths)

    def detach(self) -> Self:
        """The same values without gradient."""
        return _map(self, Tensor.detach)


class Batch:
    """Base of the containers below. Every batch is made of ``rows`` completions in one fixed order."""

    kind: str

    @classmethod
    def assemble(cls, rows: Completions, labels: Mapping[str, Tensor]) -> Self:
        """Build the container from scored rows in the order in which the data room lays them out."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """How many of each unit that a `Term` may be averaged over, from lengths and labels alone."""
        raise NotImplementedError

    @property
    def rows(self) -> Completions:
        """All completions of the batch in layout order."""
        raise NotImplementedError

    @classmethod
    def offers(cls, kind: "type[Batch]") -> bool:
        """Whether `view` can read a batch of this class as ``kind``."""
        return issubclass(cls, kind) or hasattr(cls, f"as_{kind.kind}")

    def view(self, kind: "type[Batch]") -> "Batch":
        """This batch as another container, where the conversion loses nothing that the other needs."""
        if isinstance(self, kind):
            return self
        convert = getattr(self, f"as_{kind.kind}", None)
        if convert is None:
            raise UsageError(f"a batch of {self.kind} cannot be read as {kind.kind}.")
        return convert()

    def detach(self) -> Self:
        """The same batch without gradient."""
        return _map(self, Tensor.detach)


@dataclass(frozen=True, kw_only=True)
class Demonstrations(Batch):
    """n completions to imitate. ``ids`` names each example, the same in every epoch."""

    kind = "demonstrations"
    completions: Completions
    ids: Int[Tensor, " n"] | None = None

    @classmethod
    def assemble(cls, rows: Completions, labels: Mapping[str, Tensor]) -> Self:
        return cls(completions=rows, ids=labels.get("ids"))

    @property
    def rows(self) -> Completions:
        return self.completions

    def counts(self) -> dict[str, int]:
        return {"example": len(self.completions), "token": int(self.completions.lengths.sum())}


@dataclass(frozen=True, kw_only=True)
class Pairs(Batch):
    """n pairs of a chosen and a rejected completion of the same prompt. Layout: all chosen, then all rejected.

    Attributes:
        chosen, rejected: y_w and y_l.
        ids: names each example.
        preference: P(y_w ≻ y_l) where it is known (several annotators, a judge's probability).
        chosen_score, rejected_score: scalar rewards of the two, where they are known.
    """

    kind = "pairs"
    chosen: Completions
    rejected: Completions
    ids: Int[Tensor, " n"] | None = None
    preference: Float[Tensor, " n"] | None = None
    chosen_score: Float[Tensor, " n"] | None = None
    rejected_score: Float[Tensor, " n"] | None = None

    @classmethod
    def assemble(cls, rows: Completions, labels: Mapping[str, Tensor]) -> Self:
        n = len(rows) // 2
        optional = {key: labels.get(key) for key in ("ids", "preference", "chosen_score", "rejected_score")}
        return cls(chosen=rows[:n], rejected=rows[n:], **optional)

    @classmethod
    def from_sums(
        cls,
        chosen: Float[Tensor, " n"],
        rejected: Float[Tensor, " n"],
        ref_chosen: Float[Tensor, " n"] | None = None,
        ref_rejected: Float[Tensor, " n"] | None = None,
        lengths: tuple[Int[Tensor, " n"], Int[Tensor, " n"]] | None = None,
        **labels: Float[Tensor, " n"] | Int[Tensor, " n"] | None,
    ) -> Self:
        """Build pairs from summed log-probabilities.

        Args:
            chosen, rejected: log π(y_w|x) and log π(y_l|x), summed over completion tokens.
            ref_chosen, ref_rejected: the same under the reference, for objectives that need one.
            lengths: token counts of chosen and rejected, for objectives that normalise by length.
            labels: ``ids``, ``preference``, ``chosen_score``, ``rejected_score``.
        """
        # An unknown length is 0, which objectives that normalise by length refuse.
        n_w, n_l = lengths if lengths is not None else (_unknown_lengths(chosen), _unknown_lengths(rejected))
        return cls(
            chosen=Completions(logps=chosen, lengths=n_w, ref_logps=ref_chosen),
            rejected=Completions(logps=rejected, lengths=n_l, ref_logps=ref_rejected),
            **labels,
        )

    @property
    def rows(self) -> Completions:
        return concatenate(self.chosen, self.rejected)

    @property
    def margin(self) -> Float[Tensor, " n"]:
        """h = s(y_w) − s(y_l)."""
        return self.chosen.log_ratio - self.rejected.log_ratio

    def counts(self) -> dict[str, int]:
        chosen, rejected = int(self.chosen.lengths.sum()), int(self.rejected.lengths.sum())
        tokens = {"token": chosen + rejected, "chosen_token": chosen, "rejected_token": rejected}
        return {"example": len(self.chosen), **tokens}

    def as_demonstrations(self) -> Demonstrations:
        """The chosen completions."""
        return Demonstrations(completions=self.chosen, ids=self.ids)

    def as_labelled(self) -> "Labelled":
        """Both completions, chosen as desirable and rejected as undesirable; layout as in the pairs."""
        n = len(self.chosen)
        desirable = torch.arange(2 * n, device=self.chosen.lengths.device) < n
        ids = None if self.ids is None else torch.cat([2 * self.ids, 2 * self.ids + 1])
        return Labelled(completions=self.rows, desirable=desirable, ids=ids)

    def as_ranked(self) -> "Ranked":
        """Groups of two, ranks 1 and 2; scores are kept where both are known."""
        group = torch.arange(len(self.chosen), device=self.chosen.lengths.device)
        scored = self.chosen_score is not None and self.rejected_score is not None
        return Ranked(
            completions=self.rows,
            group=torch.cat([group, group]),
            scores=torch.cat([self.chosen_score, self.rejected_score]) if scored else None,
            ranks=torch.cat([torch.ones_like(group), torch.full_like(group, 2)]),
            ids=self.ids,
        )


@dataclass(frozen=True, kw_only=True)
class Labelled(Batch):
    """n completions, each marked desirable or undesirable.

    Attributes:
        completions: y.
        desirable: True for desirable.
        mismatched: completions scored after another prompt than their own, from which KTO estimates its
            reference point; any number of rows. None where the objective does not ask for them.
        ids: names each example.
    """

    kind = "labelled"
    completions: Completions
    desirable: Bool[Tensor, " n"]
    mismatched: Completions | None = None
    ids: Int[Tensor, " n"] | None = None

    @classmethod
    def assemble(cls, rows: Completions, labels: Mapping[str, Tensor]) -> Self:
        return cls(completions=rows, desirable=labels["desirable"], ids=labels.get("ids"))

    @property
    def rows(self) -> Completions:
        return self.completions

    def counts(self) -> dict[str, int]:
        n, desirable = len(self.completions), int(self.desirable.sum())
        labels = {"desirable": desirable, "undesirable": n - desirable}
        return {"example": n, "token": int(self.completions.lengths.sum()), **labels}

    def as_demonstrations(self) -> Demonstrations:
        """The desirable completions."""
        return Demonstrations(completions=self.completions[self.desirable], ids=_pick(self.ids, self.desirable))


@dataclass(frozen=True, kw_only=True)
class Ranked(Batch):
    """g prompts, each with a group of candidates that are scored or ranked; n completions in all, in flat layout.

    A missing candidate is absent, never padded. ``ranks`` decide the order where they are given, otherwise ``scores``.
    Equals do not compete: of two tied completions neither is preferred, here and in every objective on ranked data.

    Attributes:
        completions: all candidates.
        group: which group each belongs to, from 0 without gaps; rows of a group need not be neighbours.
        scores: scalar reward of each, higher is better.
        ranks: place of each in its group, 1 is best; enough for objectives that read the order alone.
        ids: names each group.
    """

    kind = "ranked"
    completions: Completions
    group: Int[Tensor, " n"]
    scores: Float[Tensor, " n"] | None = None
    ranks: Int[Tensor, " n"] | None = None
    ids: Int[Tensor, " g"] | None = None

    def __post_init__(self) -> None:
        if self.scores is None and self.ranks is None:
            raise UsageError("a ranked batch needs scores or ranks for its completions.")

    @classmethod
    def assemble(cls, rows: Completions, labels: Mapping[str, Tensor]) -> Self:
        return cls(completions=rows, group=labels["group"], **{k: labels.get(k) for k in ("scores", "ranks", "ids")})

    @property
    def rows(self) -> Completions:
        return self.completions

    @property
    def same(self) -> Bool[Tensor, " n n"]:
        """[i, j]: whether completions i and j answer the same prompt."""
        return self.group[:, None] == self.group[None, :]

    @property
    def above(self) -> Bool[Tensor, " n n"]:
        """[i, j]: whether i and j answer the same prompt and i is strictly preferred."""
        standing = self.scores if self.ranks is None else -self.ranks
        return self.same & (standing[:, None] > standing[None, :])

    @property
    def best(self) -> Bool[Tensor, " n"]:
        """One completion of each group to which none is preferred, the first in row order."""
        top = ~self.above.any(dim=0)
        earlier = (self.same & top[:, None]).triu(diagonal=1).any(dim=0)
        return top & ~earlier

    @property
    def sizes(self) -> Int[Tensor, " n"]:
        """For each completion, how many candidates (K) its group has."""
        return self.same.sum(dim=1)

    def counts(self) -> dict[str, int]:
        best, lengths = self.best, self.completions.lengths
        tokens = {"token": int(lengths.sum()), "best_token": int(lengths[best].sum())}
        return {"example": int(best.sum()), "group": int(best.sum()), "completion": len(lengths), **tokens}

    def as_pairs(self) -> Pairs:
        """Every preference that the ranking states: one pair for each two candidates of a group that are not tied.

        A group of K gives up to K(K−1)/2 pairs, so that nothing of the ranking is lost; their mean is over pairs.
        """
        chosen, rejected = self.above.nonzero(as_tuple=True)
        place = self.same.tril(diagonal=-1).sum(dim=1)
        within = (place[chosen] << 10) + place[rejected]
        return Pairs(
            chosen=self.completions[chosen],
            rejected=self.completions[rejected],
            ids=None if self.ids is None else (self.ids[self.group[chosen]] << 20) + within,
            chosen_score=_pick(self.scores, chosen),
            rejected_score=_pick(self.scores, rejected),
        )

    def as_demonstrations(self) -> Demonstrations:
        """The best completion of each group, in the order of their rows."""
        return Demonstrations(completions=self.completions[self.best], ids=_pick(self.ids, self.group[self.best]))


def concatenate(first: Completions, second: Completions) -> Completions:
    """Stack two sets of completions; what only one of them carries is dropped (per-token values included)."""
    both_ref = first.ref_logps is not None and second.ref_logps is not None
    return Completions(
        logps=torch.cat([first.logps, second.logps]),
        lengths=torch.cat([first.lengths, second.lengths]),
        ref_logps=torch.cat([first.ref_logps, second.ref_logps]) if both_ref else None,
    )


def _pick(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]


def _unknown_lengths(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=torch.long, device=like.device)


def _map(container: Any, function: Any) -> Any:
    """Apply ``function`` to every tensor inside a (nested) container dataclass."""
    changes = {}
    for field in fields(container):
        value = getattr(container, field.name)
        if isinstance(value, Tensor):
            changes[field.name] = function(value)
        elif isinstance(value, (Completions, TokenLogps)):
            changes[field.name] = _map(value, function)
    return replace(container, **changes)


def _index(container: Any, rows: Any) -> Any:
    return _map(container, lambda tensor: tensor[rows])
