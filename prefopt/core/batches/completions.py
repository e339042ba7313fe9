"""Completions as an objective sees them: log-probabilities, summed or by token."""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefopt.core.errors import UsageError


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
        return index_rows(self, rows)


@dataclass(frozen=True, kw_only=True)
class Completions:
    """n completions, each reduced to its log-probability.

    Attributes:
        logps: log π(y | x) in nats, summed over the tokens that count (EOS included).
        lengths: how many tokens count.
        ref_logps: log π_ref(y | x), or None where no reference was scored.
        tokens: per-token values, only where the objective declares that it needs them.
        rewards: r(x, y), what a reward model that is trained gives; its log-probabilities are not scored then.
    """

    logps: Float[Tensor, " n"]
    lengths: Int[Tensor, " n"]
    ref_logps: Float[Tensor, " n"] | None = None
    tokens: TokenLogps | None = None
    rewards: Float[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return self.lengths.shape[0]

    def __getitem__(self, rows: Any) -> Self:
        """Select rows by a slice, an index tensor or a boolean tensor."""
        return index_rows(self, rows)

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

    @classmethod
    def of_rewards(cls, rewards: Float[Tensor, " n"], lengths: Int[Tensor, " n"] | None = None) -> Self:
        """Completions of which a reward model's scores are known and no log-probabilities, for `reward` and its like.

        Args:
            rewards: r(x, y).
            lengths: token counts; 0 where they are not given.
        """
        lengths = torch.zeros_like(rewards, dtype=torch.long) if lengths is None else lengths
        return cls(logps=torch.zeros_like(rewards), lengths=lengths, rewards=rewards)

    def detach(self) -> Self:
        """The same values without gradient."""
        return map_tensors(self, Tensor.detach)


def concatenate(first: Completions, second: Completions) -> Completions:
    """Stack two sets of completions; what only one of them carries is dropped (per-token values included)."""
    both = {
        name: torch.cat([getattr(first, name), getattr(second, name)])
        for name in ("ref_logps", "rewards")
        if getattr(first, name) is not None and getattr(second, name) is not None
    }
    return Completions(
        logps=torch.cat([first.logps, second.logps]), lengths=torch.cat([first.lengths, second.lengths]), **both
    )


def map_tensors(container: Any, function: Any) -> Any:
    """Apply ``function`` to every tensor inside a (nested) container dataclass."""
    changes = {}
    for field in fields(container):
        value = getattr(container, field.name)
        if isinstance(value, Tensor):
            changes[field.name] = function(value)
        elif isinstance(value, (Completions, TokenLogps)):
            changes[field.name] = map_tensors(value, function)
    return replace(container, **changes)


def index_rows(container: Any, rows: Any) -> Any:
    return map_tensors(container, lambda tensor: tensor[rows])
