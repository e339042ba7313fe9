"""Completions that a policy sampled, with what policy-gradient objectives learn from."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from prefopt.core.batches.base import Batch
from prefopt.core.batches.completions import Completions, TokenLogps


@dataclass(frozen=True, kw_only=True)
class Rollouts(Batch):
    """n sampled completions with per-token advantages, right-padded to t positions like their `TokenLogps`.

    Attributes:
        completions: y with its tokens, under the policy that is trained and, where it is needed, the reference.
        old_logps: log π_old(y_t | x, y_<t) in nats, of the policy that sampled, at the sampling temperature.
        advantages: A_t.
        values: V(x, y_<t), what the critic expects before token t; with gradient. None without a critic.
        old_values: the same at sampling time.
        returns: what the critic is to learn.
        ids: names each completion.
    """

    kind = "rollouts"
    completions: Completions
    old_logps: Float[Tensor, " n t"]
    advantages: Float[Tensor, " n t"]
    values: Float[Tensor, " n t"] | None = None
    old_values: Float[Tensor, " n t"] | None = None
    returns: Float[Tensor, " n t"] | None = None
    ids: Int[Tensor, " n"] | None = None

    @property
    def rows(self) -> Completions:
        return self.completions

    def averaged(self, values: Float[Tensor, " n t"]) -> Float[Tensor, " n"]:
        """The mean of per-token values over the tokens of each completion; 0 for an empty one."""
        return self.tokens.sum(values) / self.completions.lengths.clamp(min=1)

    @property
    def tokens(self) -> TokenLogps:
        """The per-token values of the completions; they count where ``tokens.mask`` is True."""
        return self.completions.tokens

    def counts(self) -> dict[str, int]:
        return {"example": len(self.completions), "token": int(self.completions.lengths.sum())}
