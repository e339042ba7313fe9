"""What an objective declares about itself: what it reads, and where it comes from."""

from dataclasses import dataclass

from prefopt.core.batches import Batch
from prefopt.core.errors import UsageError, did_you_mean

OBSERVED = ("mismatched", "rows")
"""What an objective may see of the whole step."""
STATISTICS = ("kl", "log_sum_p2")
"""Per-token statistics that can be scored."""


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
        detaches: what the gradient holds constant although the value depends on it, each a noun phrase, one or
            several: ``"the weights"``. Whatever `terms` detaches, and whatever `prepare` makes of the log-probs,
            is declared here, unless the gradient is that of the value all the same. Always a tuple when read.
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
    detaches: str | tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    singles: bool = False
    coupled: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.observes, str):
            object.__setattr__(self, "observes", frozenset({self.observes}))
        if isinstance(self.detaches, str):
            object.__setattr__(self, "detaches", (self.detaches,))
        for field, given, known in (("observes", self.observes, OBSERVED), ("statistics", self.statistics, STATISTICS)):
            for name in given:
                if name not in known:
                    near = did_you_mean(name, known)
                    raise UsageError(f"Needs({field}={name!r}): choose {' or '.join(map(repr, known))}.{near}")


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
