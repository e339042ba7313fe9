"""What an objective returns: terms, each with what it is averaged over."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from prefopt.core.errors import UsageError, did_you_mean

State = Mapping[str, Tensor]
"""What an objective remembers or has observed: a few named tensors."""


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
        """Σ_terms weight · Σ values / denominators[per]; a count of zero counts as one.

        Raises:
            UsageError: A term is averaged over a unit that the batch does not count.
        """
        for name, term in self.terms.items():
            if term.per not in denominators:
                near = did_you_mean(str(term.per), denominators)
                raise UsageError(
                    f"the term {name!r} is averaged per {term.per!r}, which its batch does not count.{near} "
                    f"It counts {', '.join(denominators)}."
                )
        parts = [term.weight * term.values.sum() / max(denominators[term.per], 1) for term in self.terms.values()]
        return torch.stack(parts).sum()
