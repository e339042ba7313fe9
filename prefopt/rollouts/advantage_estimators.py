"""Rollout processors that estimate advantages: one for every token of every completion."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from prefopt.core.batches import Batch, Rollouts
from prefopt.core.errors import UsageError
from prefopt.core.policy_gradient import ESTIMATORS, kl_estimate
from prefopt.core.recipe import Range
from prefopt.core.settings import check_settings, parameter
from prefopt.data import TokenizedExample
from prefopt.rollouts.advantages import (
    gae,
    leave_one_out,
    relative_to_group,
    reward_to_tokens,
    rewards_to_go,
    whiten,
)
from prefopt.rollouts.kl_controller import KLPenalty
from prefopt.rollouts.processor import RolloutProcessor
from prefopt.rollouts.rollout import MIXTURE, POLICY, Group, Rollout


@dataclass(frozen=True, kw_only=True)
class AdvantageEstimator(RolloutProcessor):
    """Base of the processors below: one example per completion, with advantages."""

    batch: ClassVar[type[Batch]] = Rollouts

    def __post_init__(self) -> None:
        check_settings(self, type(self).__name__)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"old_logps"})

    def advantages(self, rollout: Rollout) -> Tensor:
        """A of every completion, [n], or of every token, [n, t]."""
        raise NotImplementedError

    def __call__(self, rollout: Rollout) -> list[TokenizedExample]:
        return rollout.examples(advantages=_by_token(self.advantages(rollout), rollout.mask))


@dataclass(frozen=True, kw_only=True)
class KLShapedEstimator(AdvantageEstimator):
    """Base of the estimators whose reward has the KL to the reference in it: −β · estimate at each token."""

    kl_coef: float = parameter(0.05, "β, the weight of the KL in the reward", at_least=0, tune=Range(0.005, 0.5))
    kl_estimator: str = parameter("k1", "estimate of the KL at a token", choices=ESTIMATORS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"old_logps", "ref_logps"} if self.kl_coef > 0 else {"old_logps"})

    @property
    def kl_penalty(self) -> KLPenalty | None:
        return KLPenalty(self.kl_coef)

    def kl(self, rollout: Rollout) -> Tensor:
        """The KL estimate at each token, [n, t]; 0 where there is none in the reward."""
        if self.kl_coef == 0:
            return torch.zeros(rollout.mask.shape, dtype=torch.float64)
        return kl_estimate(rollout.tokens("old_logps") - rollout.tokens("ref_logps"), self.kl_estimator)

    def penalty(self, rollout: Rollout) -> Tensor:
        """β · KL at each token, [n, t]."""
        return rollout.kl_coef * self.kl(rollout)

    def shaped(self, rollout: Rollout) -> Tensor:
        """The reward of a completion with the KL of all its tokens in it, [n]."""
        return rollout.rewards - torch.where(rollout.mask, self.penalty(rollout), 0.0).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class Gae(KLShapedEstimator):
    """Generalized advantage estimation with a critic (PPO): rewards at tokens, values, advantages, returns.

    The score stands at the last token of a completion, −β·KL at every one. OpenAI's released runs: γ = 1, λ = 0.95, an
    adaptive β from 0.15 with target 6 and horizon 10,000, rewards whitened.
    """

    gamma: float = parameter(1.0, "discount of a token", above=0, at_most=1)
    lam: float = parameter(0.95, "λ: 1 is the return minus the value, 0 the one-step error", at_least=0, at_most=1)
    whiten_rewards: bool = parameter(False, "divide rewards by their standard deviation, over all tokens")
    normalize_scores: bool = parameter(False, "bring scores to mean 0 and deviation 1, over the rollout")
    clip_scores: float = parameter(0.0, "bound of a score, above and below, after that; 0 is off", at_least=0)
    whiten_advantages: bool = parameter(True, "bring advantages to mean 0 and variance 1, over all tokens")
    kl_controller: str = parameter("fixed", "whether β follows the KL", choices=("fixed", "adaptive"))
    kl_target: float = parameter(6.0, "KL of a completion in nats that an adaptive β aims at", above=0)
    kl_horizon: float = parameter(10_000, "completions over which an adaptive β reacts", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl_controller == "adaptive" and self.kl_coef == 0:
            raise UsageError("ppo: an adaptive kl_coef that starts at 0 stays there: set kl_coef above 0, or fixed.")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"values"}

    @property
    def kl_penalty(self) -> KLPenalty | None:
        adaptive = self.kl_controller == "adaptive"
        return KLPenalty(self.kl_coef, self.kl_target if adaptive else None, self.kl_horizon)

    def __call__(self, rollout: Rollout) -> list[TokenizedExample]:
        mask, values = rollout.mask, rollout.tokens("values")
        rewards = reward_to_tokens(self.scores(rollout), mask, self.penalty(rollout))
        if self.whiten_rewards:
            rewards = _whitened(rewards, mask, shift_mean=False)
        advantages, returns = gae(rewards, values, mask, gamma=self.gamma, lam=self.lam)
        if self.whiten_advantages:
            advantages = _whitened(advantages, mask)
        return rollout.examples(advantages=advantages, returns=returns, old_values=values)

    def scores(self, rollout: Rollout) -> Tensor:
        """The rewards as the critic sees them, [n]; what is logged are the rewards as they were given."""
        scores = whiten(rollout.rewards) if self.normalize_scores else rollout.rewards
        return scores.clamp(-self.clip_scores, self.clip_scores) if self.clip_scores > 0 else scores


@dataclass(frozen=True, kw_only=True)
class Plain(KLShapedEstimator):
    """The reward itself as advantage of every token (REINFORCE), with the KL of the completion in it."""

    def advantages(self, rollout: Rollout) -> Tensor:
        return self.shaped(rollout)


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut(KLShapedEstimator):
    """RLOO (Ahmadian et al. 2024, arXiv 2402.14740): the reward, with the KL in it, minus the mean of the others'."""

    compares: ClassVar[int] = 2

    def advantages(self, rollout: Rollout) -> Tensor:
        return leave_one_out(self.shaped(rollout), rollout.group)


@dataclass(frozen=True, kw_only=True)
class BatchNormalized(KLShapedEstimator):
    """REINFORCE++ (Hu et al. 2025, arXiv 2501.03262): r − β Σ_{i≥t} KL_i, normalized over all tokens of the rollout.

    With ``baseline="group"`` the mean reward of the group is taken off first. The paper is not of one mind on credit
    per token or at the last token; this is credit per token.
    """

    baseline: str = parameter("none", "what is taken off the rewards first", choices=("none", "group"))

    @property
    def compares(self) -> int:
        return 2 if self.baseline == "group" else 1

    def advantages(self, rollout: Rollout) -> Tensor:
        rewards, mask = rollout.rewards, rollout.mask
        if self.baseline == "group":
            rewards = relative_to_group(rewards, rollout.group, scale="none")
        advantages = rewards[:, None] - rewards_to_go(self.penalty(rollout), mask)
        return _whitened(advantages, mask)


@dataclass(frozen=True, kw_only=True)
class GroupRelative(AdvantageEstimator):
    """GRPO (Shao et al. 2024, arXiv 2402.03300): (r − mean)/(std + ε) inside the group of a prompt."""

    compares: ClassVar[int] = 2

    scale: str = parameter("sample", "standard deviation to divide by", choices=("sample", "population", "none"))
    eps: float = parameter(1e-6, "added to the standard deviation", above=0)

    def advantages(self, rollout: Rollout) -> Tensor:
        return relative_to_group(self.compared_rewards(rollout), rollout.group, scale=self.scale, eps=self.eps)

    def compared_rewards(self, rollout: Rollout) -> Tensor:
        """The rewards that are compared, [n]."""
        return rollout.rewards


@dataclass(frozen=True, kw_only=True)
class CenteredOnGroup(GroupRelative):
    """Dr. GRPO (Liu et al. 2025, arXiv 2503.20783): r − mean inside the group of a prompt."""

    scale: str = parameter("none", "standard deviation to divide by", choices=("sample", "population", "none"))


@dataclass(frozen=True, kw_only=True)
class DynamicSampling(GroupRelative):
    """DAPO (Yu et al. 2025, arXiv 2503.14476): GRPO's advantages of groups that are neither all right nor all wrong.

    A group whose rewards are all equal is replaced by that of another prompt. Of several reward functions one decides
    this, as the paper's correctness does: lengths and formats differ in nearly every group. Completions near the limit
    of generation lose reward: 0 up to L_max − L_c tokens, linearly more up to 1 at L_max (the paper's L_c is a fifth
    of its L_max).
    """

    overlong: float = parameter(0.2, "L_c as a share of the limit of generation; 0 is off", at_least=0, at_most=1)
    correctness: str = parameter(
        "", "name of the reward function by which groups are kept; by default the first of several"
    )

    def keep_group(self, group: Group) -> bool:
        functions = [name for name in group.parts if "/" not in name]
        if self.correctness and self.correctness not in functions:
            known = ", ".join(functions)
            known = ", ".join(functions)
            raise UsageError(f"dapo: correctness={self.correctness!r} is none of the rewards: {known}.")
        chosen = self.correctness or (functions[0] if len(functions) > 1 else "")
        return len(set(group.parts[chosen] if chosen else group.rewards)) > 1

    def compared_rewards(self, rollout: Rollout) -> Tensor:
        if self.overlong == 0:
            return rollout.rewards
        limits = rollout.limits
        margin = self.overlong * limits
        over = (rollout.mask.sum(dim=1) - (limits - margin)).clamp(min=0) / margin
        return rollout.rewards - over


@dataclass(frozen=True, kw_only=True)
class AgainstMixture(AdvantageEstimator):
    """Nash-MD (Munos et al. 2023, arXiv 2312.00886): how often a completion beats one of a mixed policy.

    .. math:: A = P(y ≻ y') − ½ − τ (log π(y) − log π_ref(y)),   y ~ π,  y' ~ mixture of π and π_ref

    P = σ(r − r') from the rewards. The mixture is made token by token, softmax((1 − β)·logits + β·reference's), which
    is not the mixture of whole completions that the paper analyses; β = 0 is self-play. The KL is that of the whole
    completion, so its gradient is unbiased. Only the policy's completions are learned from.
    """

    samplers: ClassVar[tuple[str, ...]] = (POLICY, MIXTURE)

    tau: float = parameter(0.1, "weight of the KL to the reference", at_least=0, tune=Range(0.01, 1.0))
    mixture: float = parameter(0.125, "β, the weight of the reference in the mixture", at_least=0, at_most=1)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"old_logps", "ref_logps"})

    def examples_per_prompt(self, n: int) -> int:
        return n // 2

    def __call__(self, rollout: Rollout) -> list[TokenizedExample]:
        own = [_own_half(group) for group in rollout.groups]
        rewards, others = rollout.rewards.reshape(len(own), 2, -1).unbind(dim=1)
        kept = replace(rollout, groups=own)
        ratio = (kept.tokens("old_logps") - kept.tokens("ref_logps")).sum(dim=1)
        advantages = torch.sigmoid(rewards - others).flatten() - 0.5 - self.tau * ratio
        return kept.examples(advantages=_by_token(advantages, kept.mask))


def _own_half(group: Group) -> Group:
    half = len(group.samples) // 2
    return Group(group.prompt, group.samples[:half], group.rewards[:half], group.tokens[:half])


def _by_token(advantages: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, advantages if advantages.ndim == 2 else advantages[:, None], 0.0)


def _whitened(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    own = values[mask]
    white = whiten(own, shift_mean=shift_mean)
    return torch.zeros_like(values).masked_scatter(mask, white)
