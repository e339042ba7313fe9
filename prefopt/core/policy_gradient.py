"""What policy-gradient objectives share: the ratio to the sampling policy, and the KL to the reference."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prefopt.core.batches import Completions, Rollouts
from prefopt.core.errors import UsageError
from prefopt.core.loss import State
from prefopt.core.needs import Needs
from prefopt.core.objective import Objective
from prefopt.core.settings import parameter

ESTIMATORS = ("k1", "k2", "k3")
MAX_EXPONENT = 40.0
"""Where exponents of log-ratios are cut: the product of two, e^80 ≈ 6e34, can be summed over tokens in float32."""


def kl_estimate(log_ratio: Float[Tensor, "..."], kind: str) -> Float[Tensor, "..."]:
    """Schulman's estimators of KL(π ‖ π_ref) from samples of π, with x = log π − log π_ref.

    ======  ==============  =========================================================================
    kind    value           as a loss on samples of π, its expected gradient is that of
    ======  ==============  =========================================================================
    k1      x               nothing (0): it belongs into the reward
    k2      x²/2            KL(π ‖ π_ref)
    k3      e^{−x} − 1 + x  KL(π_ref ‖ π); times the ratio π/π_old, and differentiated with it, KL(π ‖ π_ref)
    ======  ==============  =========================================================================

    k1 and k3 are unbiased, k2 is not; k2 and k3 are never negative. In k3 the exponent is cut at `MAX_EXPONENT`.

    Taken token by token, these are the KLs of the next token given the ones before it: that an earlier choice leads
    to prefixes with another KL is not in their gradient. With k1 in the reward it is.
    """
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return 0.5 * log_ratio**2
    if kind == "k3":
        # Near 0 the two summands cancel, and rounding could make it negative; there its series is exact.
        near = log_ratio.abs() < 0.01
        x = torch.where(near, log_ratio, 0.0)
        series = 0.5 * x**2 * (1 - x / 3 * (1 - x / 4 * (1 - x / 5 * (1 - x / 6))))
        x = torch.where(near, 1.0, log_ratio)
        return torch.where(near, series, torch.expm1((-x).clamp(max=MAX_EXPONENT)) + x)
    raise UsageError(f"there is no KL estimator {kind!r}: choose k1, k2 or k3.")


def bounded_exp(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """eˣ with the exponent cut at `MAX_EXPONENT`."""
    return x.clamp(max=MAX_EXPONENT).exp()


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Objective[Rollouts]):
    """Base of the losses on sampled completions: a surrogate per token, plus β times an estimate of the KL.

    A subclass says in `terms` what the surrogate is and how tokens are averaged. It needs a reference only where
    ``beta`` is above 0.
    """

    needs = Needs(batch=Rollouts, tokens=True, labels=("old_logps", "advantages"))
    corrects: ClassVar[bool] = True
    """Whether the loss stays right when the policy has moved from the one that sampled."""

    beta: float = parameter(0.0, "weight of the KL to the reference as a part of the loss", at_least=0)
    kl: str = parameter("k3", "estimator of that KL", choices=ESTIMATORS)
    kl_ratio: bool = parameter(False, "multiply that estimate by π/π_old, so that its gradient is the one it should be")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "needs", replace(type(self).needs, reference=self.beta > 0))

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """The log-ratio to the reference, to which the optimal policy's reward is proportional; without one, log π."""
        return completions.logps if completions.ref_logps is None else completions.log_ratio

    @property
    def bounds(self) -> tuple[float, float] | None:
        """How far the ratio may fall and rise before its gradient stops; None without clipping."""
        return None

    def clipped(self, batch: Rollouts) -> Float[Tensor, " n t"]:
        """The clipped surrogate at every token, with the KL's part; within `bounds`."""
        return clipped(self.ratio(batch), self.advantages(batch), *self.bounds) + self.penalty(batch)

    def log_ratio(self, batch: Rollouts) -> Float[Tensor, " n t"]:
        """log π − log π_old at every token; 0 outside the mask, whatever stands there."""
        return _inside(batch, batch.tokens.logps) - _inside(batch, batch.old_logps)

    def ratio(self, batch: Rollouts) -> Float[Tensor, " n t"]:
        """ρ = π/π_old at every token; 1 outside the mask."""
        return bounded_exp(self.log_ratio(batch))

    def advantages(self, batch: Rollouts) -> Float[Tensor, " n t"]:
        """A at every token; 0 outside the mask."""
        return _inside(batch, batch.advantages)

    def penalty(self, batch: Rollouts) -> Float[Tensor, " n t"]:
        """β · KL estimate at every token; 0 where β is."""
        if self.beta == 0:  # then there may be no reference
            return torch.zeros_like(batch.tokens.logps)
        return self.beta * self.estimate(batch)

    def estimate(self, batch: Rollouts) -> Float[Tensor, " n t"]:
        """The estimate of KL(π ‖ π_ref) at every token, as it is trained on; 0 outside the mask."""
        reference = _inside(batch, batch.tokens.ref_logps)
        log_ratio = _inside(batch, batch.tokens.logps) - reference
        estimate = kl_estimate(log_ratio, self.kl)
        if not self.kl_ratio:
            return estimate
        ratio = self.ratio(batch)
        if self.kl != "k3":
            return ratio * estimate
        # ρ e^{−x} is π_ref/π_old, in which π has no part. As a product it would get two gradients that cancel, and with
        # them the digits of what remains. Near 0, and where an exponent is cut, nothing large cancels.
        apart = (log_ratio < -1) & (log_ratio > -MAX_EXPONENT) & (self.log_ratio(batch) < MAX_EXPONENT)
        fixed = torch.where(apart, reference - _inside(batch, batch.old_logps), 0.0).exp()
        return torch.where(apart, fixed + ratio * (log_ratio - 1), ratio * torch.where(apart, 0.0, estimate))

    def metrics(self, batch: Rollouts, state: State) -> dict[str, Tensor]:
        """How far the policy is from the one that sampled, over the tokens that count."""
        moved = self.log_ratio(batch)[batch.tokens.mask]
        return {
            "logps": batch.rows.logps,
            # KL(π_old ‖ π) from samples of π_old.
            "policy/approx_kl": kl_estimate(-moved, "k3"),
            "policy/ratio": bounded_exp(moved),
            # Summed over each completion, by the estimator that is trained on.
            **({"kl": batch.tokens.sum(self.estimate(batch))} if self.beta > 0 else {}),
            **({} if self.bounds is None else {"policy/clip_fraction": self._held(batch)}),
        }

    def _held(self, batch: Rollouts) -> Float[Tensor, " k"]:
        """1 for each token at which clipping holds the gradient back, else 0."""
        ratio, (low, high) = self.ratio(batch), self.bounds
        held = ((batch.advantages > 0) & (ratio > 1 + high)) | ((batch.advantages < 0) & (ratio < 1 - low))
        return held[batch.tokens.mask].to(ratio.dtype)


def clipped(
    ratio: Float[Tensor, "..."], advantages: Float[Tensor, "..."], low: float, high: float
) -> Float[Tensor, "..."]:
    """PPO's surrogate, to be minimised: −min(ρA, clip(ρ, 1 − low, 1 + high)·A)."""
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def _inside(batch: Rollouts, values: Float[Tensor, " n t"]) -> Float[Tensor, " n t"]:
    return torch.where(batch.tokens.mask, values, 0.0)
