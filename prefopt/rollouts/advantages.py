"""From rewards to advantages: pure functions on tensors, in nats and reward units, without gradient.

Completions are rows, right-padded to t positions; ``mask`` is True on the tokens that count. What stands outside the
mask is never read, and comes out as 0.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def reward_to_tokens(
    scores: Float[Tensor, " n"], mask: Bool[Tensor, " n t"], penalties: Float[Tensor, " n t"] | None = None
) -> Float[Tensor, " n t"]:
    """r_t = −penalty_t, plus the score of the completion at its last token (the end-of-sequence token if it has one).

    With ``penalties`` β·k1_t the sum over tokens is score − β(log π_old(y) − log π_ref(y)).
    """
    rewards = torch.zeros_like(mask, dtype=scores.dtype)
    if penalties is not None:
        rewards = torch.where(mask, -penalties, rewards)
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return rewards + torch.where(last, scores[:, None], 0.0)


def gae(
    rewards: Float[Tensor, " n t"],
    values: Float[Tensor, " n t"],
    mask: Bool[Tensor, " n t"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, " n t"], Float[Tensor, " n t"]]:
    """Generalised advantage estimation (Schulman et al. 2015, arXiv 1506.02438) and the returns A + V.

    .. math:: A_t = Σ_k (γλ)^k δ_{t+k},   δ_t = r_t + γ V_{t+1} − V_t

    V after the last token of a completion is 0: a completion ends there, whether by itself or at the limit. λ = 1
    gives the Monte-Carlo return minus V, λ = 0 the TD error. Tokens outside the mask are stepped over.
    """
    values, rewards = torch.where(mask, values, 0.0), torch.where(mask, rewards, 0.0)
    advantages = torch.zeros_like(values)
    ahead, next_value = values.new_zeros(len(values)), values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        ahead = torch.where(here, delta + gamma * lam * ahead, ahead)
        next_value = torch.where(here, values[:, t], next_value)
        advantages[:, t] = torch.where(here, ahead, 0.0)
    return advantages, advantages + values


def rewards_to_go(rewards: Float[Tensor, " n t"], mask: Bool[Tensor, " n t"]) -> Float[Tensor, " n t"]:
    """Σ_{i ≥ t} r_i at every token that counts."""
    rewards = torch.where(mask, rewards, 0.0)
    return torch.where(mask, rewards.flip(1).cumsum(1).flip(1), 0.0)


def whiten(
    values: Float[Tensor, " k"],
    *,
    shift_mean: bool = True,
    eps: float = 1e-8,
) -> Float[Tensor, " k"]:
    """(v − mean)/(std + ε) with the population's standard deviation; ``shift_mean=False`` keeps the mean.

    Args:
        values: The values at the tokens that count.
        shift_mean: Whether the mean becomes 0. Rewards are only scaled.
        eps: Keeps equal values finite.
    """
    # Relative to one of them, or the mean of equal values would be rounded, and ε is smaller than that.
    offset = values[:1].sum()
    mean, std = (values - offset).mean(), (values - offset).std(unbiased=False)
    white = (values - offset - mean) / (std + eps)
    return white if shift_mean else white + offset + mean


def relative_to_group(
    rewards: Float[Tensor, " n"],
    group: Int[Tensor, " n"],
    *,
    scale: str = "sample",
    eps: float = 1e-6,
) -> Float[Tensor, " n"]:
    """GRPO's advantages: (r_i − mean r)/(std r + ε) inside each group (arXiv 2402.03300).

    Args:
        rewards: The reward of each completion.
        group: The number of the prompt that it answers; any whole numbers.
        scale: ``"sample"`` (Bessel-corrected) or ``"population"`` standard deviation, or ``"none"`` (Dr. GRPO).
        eps: Keeps groups of equal rewards finite; they get 0, as does a completion alone in its group.
    """
    same = group[:, None] == group[None, :]
    size, rewards = same.sum(dim=1), _below_the_best(rewards, same)
    centred = rewards - _sum(rewards, same) / size
    if scale == "none":
        return centred
    squares = _sum(centred**2, same) / (size if scale == "population" else (size - 1).clamp(min=1))
    return centred / (squares.sqrt() + eps)


def leave_one_out(rewards: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """RLOO's advantages: r_i minus the mean of the others in its group (arXiv 2402.14740); 0 for one that is alone."""
    same = group[:, None] == group[None, :]
    size, rewards = same.sum(dim=1), _below_the_best(rewards, same)
    others = (_sum(rewards, same) - rewards) / (size - 1).clamp(min=1)
    return torch.where(size > 1, rewards - others, 0.0)


def _below_the_best(rewards: Float[Tensor, " n"], same: Bool[Tensor, " n n"]) -> Float[Tensor, " n"]:
    """Rewards minus the greatest of their group, so that equal ones are exactly 0.

    The mean of equal rewards is rounded, and that error divided by a standard deviation made of nothing else would be
    an advantage.
    """
    return rewards - torch.where(same, rewards[None, :], -torch.inf).amax(dim=1)


def _sum(values: Float[Tensor, " n"], same: Bool[Tensor, " n n"]) -> Float[Tensor, " n"]:
    """Σ over the group of each row. Not a matrix product, which may run in TF32."""
    return torch.where(same, values[None, :], 0.0).sum(dim=1)
