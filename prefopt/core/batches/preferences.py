"""Containers of preference data: demonstrations, pairs, labelled and ranked completions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefopt.core.batches.base import Batch
from prefopt.core.batches.completions import Completions, concatenate
from prefopt.core.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Demonstrations(Batch):
    """n completions to imitate. ``ids`` names each example, the same in every epoch."""

    kind = "demonstrations"
    completions: Completions
    ids: Int[Tensor, " n"] | None = None

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
        rated_margin: by how much the chosen one is the better, in the unit of the rewards, where annotators said so.
        sampled_by_reference: whether the chosen one is the reference's sample and the rejected one the policy's, or
            the other way round, for pairs of one sample of each (XPO).
    """

    kind = "pairs"
    chosen: Completions
    rejected: Completions
    ids: Int[Tensor, " n"] | None = None
    preference: Float[Tensor, " n"] | None = None
    chosen_score: Float[Tensor, " n"] | None = None
    rejected_score: Float[Tensor, " n"] | None = None
    rated_margin: Float[Tensor, " n"] | None = None
    sampled_by_reference: Bool[Tensor, " n"] | None = None

    @classmethod
    def assemble(cls, rows: Completions, labels: Mapping[str, Tensor]) -> Self:
        n = len(rows) // 2
        return cls(chosen=rows[:n], rejected=rows[n:], **cls._own(labels))

    @classmethod
    def from_sums(
        cls,
        chosen: Float[Tensor, " n"],
        rejected: Float[Tensor, " n"],
        ref_chosen: Float[Tensor, " n"] | None = None,
        ref_rejected: Float[Tensor, " n"] | None = None,
        lengths: tuple[Int[Tensor, " n"], Int[Tensor, " n"]] | None = None,
        **labels: Float[Tensor, " n"] | Int[Tensor, " n"] | Bool[Tensor, " n"] | None,
    ) -> Self:
        """Build pairs from summed log-probabilities.

        Args:
            chosen, rejected: log π(y_w|x) and log π(y_l|x), summed over completion tokens.
            ref_chosen, ref_rejected: the same under the reference, for objectives that need one.
            lengths: token counts of chosen and rejected, for objectives that normalise by length.
            labels: Whichever labels of the pairs are known, by the names of the fields.
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

    @property
    def rows(self) -> Completions:
        return self.completions

    def counts(self) -> dict[str, int]:
        n, desirable = len(self.completions), int(self.desirable.sum())
        tokens, good = int(self.completions.lengths.sum()), int(self.completions.lengths[self.desirable].sum())
        return {
            "example": n,
            "token": tokens,
            "desirable": desirable,
            "undesirable": n - desirable,
            "desirable_token": good,
            "undesirable_token": tokens - good,
        }

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


def _pick(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]


def _unknown_lengths(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=torch.long, device=like.device)
