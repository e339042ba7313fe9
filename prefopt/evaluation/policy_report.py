"""What a policy is worth under a reward: what it answers to held-out prompts, beside the model it started from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from transformers import PreTrainedTokenizerBase

from prefopt.core.errors import UsageError
from prefopt.data import TokenizedDataset
from prefopt.evaluation.samples import Samples, log_ratios, win_rates
from prefopt.evaluation.statistics import Estimate
from prefopt.rewards.reward import Reward
from prefopt.rollouts import GenerationSettings, TransformersGenerator
from prefopt.rollouts.rollout_metrics import repeated_trigrams
from prefopt.rollouts.sample import columns_of

LONGER, REPEATS = 1.5, 0.1
"""The factor in length and the rise of repetition from which on a higher reward is suspected of being cheated."""


@dataclass(frozen=True)
class Scored:
    """What a model answered, and what that is worth.

    Attributes:
        samples: its completions with their total reward.
        parts: what each reward gave each completion, and its details, by name; [n k] each.
    """

    samples: Samples
    parts: Mapping[str, Float[np.ndarray, "n k"]]

    def estimates(self) -> dict[str, Estimate]:
        """Reward, its parts where there are several, length, share that ended by itself, and repetition."""
        samples = self.samples
        parts = {f"reward/{name}": values for name, values in self.parts.items()} if len(self.parts) > 1 else {}
        values = {
            "reward": samples.rewards,
            **parts,
            "length": samples.lengths,
            "ended": np.array([[float(each.ended) for each in group] for group in samples.groups]),
            "repetition": np.array([[repeated_trigrams(each.ids) for each in group] for group in samples.groups]),
        }
        return {name: _estimate(value, share=name in ("ended", "repetition")) for name, value in values.items()}


@dataclass(frozen=True)
class PolicyReport:
    """The numbers of the report. Every interval is a 95 % t-interval over prompts, whose samples are averaged first.

    Attributes:
        prompts, n: how many prompts, and completions of each.
        policy: ``reward``, each of its parts as ``reward/NAME``, ``length`` in tokens, and the shares ``ended`` (by an
            end token rather than at the limit) and ``repetition`` (of token trigrams that stood before).
        start: the same of the model that it is compared with; None without one.
        gain: reward of the policy minus that of the start, prompt by prompt.
        win_rate: share of comparisons of a completion with one of the start's that the policy wins; ties one half.
        kl: KL(π ‖ π_start) per completion in nats, at the temperature of the sampling; None also where the sampling is
            not from the whole distribution (temperature 0, top_p, top_k), because it would not be a divergence.
        warnings: lines on what should worry.
    """

    prompts: int
    n: int
    policy: Mapping[str, Estimate]
    start: Mapping[str, Estimate] | None = None
    gain: Estimate | None = None
    win_rate: Estimate | None = None
    kl: Estimate | None = None
    warnings: tuple[str, ...] = ()


def score_policy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: TokenizedDataset,
    reward: Reward,
    settings: GenerationSettings,
    seed: int,
) -> Scored:
    """Sample completions of every prompt and score them.

    The same seed gives the same completions; the global random state is as before when it returns.

    Raises:
        UsageError: fewer than two prompts, a prompt that leaves no room for a completion, or a reward that fails.
    """
    if len(prompts) < 2:
        raise UsageError("a policy is evaluated on 2 prompts at the least, or there is no interval; give more --data.")
    generator = TransformersGenerator(tokenizer, prompts.stop_ids)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        groups = generator.generate(model, [each.prompt for each in prompts.examples], settings)
    flat = [sample for group in groups for sample in group]
    numbers = [number for number in range(len(groups)) for _ in range(settings.n)]
    sources = [prompts.examples[number].source for number in numbers]
    columns = columns_of(sources, flat, numbers, settings.max_new_tokens)
    totals, parts = reward([source.prompt for source in sources], [sample.text for sample in flat], columns)
    asked, ids = [each.source.prompt for each in prompts.examples], [each.prompt for each in prompts.examples]
    samples = Samples(asked, ids, groups, _by_prompt(totals, settings.n))
    return Scored(samples, {name: _by_prompt(values, settings.n) for name, values in parts.items()})


def _by_prompt(values: Sequence[float], n: int) -> Float[np.ndarray, "prompts n"]:
    return np.asarray(values, dtype=np.float64).reshape(-1, n)


def compare(policy: Scored, start: Scored | None, ratios: Float[np.ndarray, "prompts n"] | None) -> PolicyReport:
    """The report.

    Args:
        policy: what the policy answered.
        start: what the model that it is compared with answered to the same prompts, sampled with another seed.
        ratios: the log-ratios of the policy's completions to that model, where their mean is a divergence.
    """
    samples, own = policy.samples, policy.estimates()
    theirs = None if start is None else start.estimates()
    measured: dict[str, Estimate | None] = {"gain": None, "win_rate": None, "kl": None}
    if start is not None:
        difference = samples.rewards.mean(axis=1) - start.samples.rewards.mean(axis=1)
        measured["gain"] = _estimate(difference[:, None])
        measured["win_rate"] = _estimate(win_rates(samples, start.samples)[:, None], share=True)
    if ratios is not None:
        measured["kl"] = _estimate(ratios)
    warnings = () if theirs is None else tuple(_warnings(own, theirs, measured["gain"]))
    return PolicyReport(*samples.rewards.shape, own, theirs, **measured, warnings=warnings)


def _estimate(values: Float[np.ndarray, "prompts n"], *, share: bool = False) -> Estimate:
    """Over prompts; of a share, the interval ends where shares end."""
    found = Estimate.of(values.mean(axis=1)[None])
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0)) if share else found


def _warnings(own: Mapping[str, Estimate], start: Mapping[str, Estimate], gain: Estimate) -> list[str]:
    """A reward that went up may have been cheated; one whose interval holds 0 says nothing."""
    found = []
    if gain.low <= 0 <= gain.high:
        found.append(
            f"the gain in reward, {gain.mean:+.3g}, cannot be told from none (95 % interval {gain.low:+.3g} to "
            f"{gain.high:+.3g}): evaluate on more prompts, or with more completions of each."
        )
    if gain.low <= 0:
        return found
    before, now = start["length"].mean, own["length"].mean
    if not before / LONGER <= now <= LONGER * before:
        found.append(f"the reward rose while completions went from {before:.0f} to {now:.0f} tokens.")
    before, now = start["repetition"].mean, own["repetition"].mean
    if now > before + REPEATS:
        found.append(f"the reward rose while repeated trigrams went from {before:.0%} to {now:.0%}.")
    before, now = start["ended"].mean, own["ended"].mean
    if now < before - REPEATS:
        found.append(f"the reward rose while completions that end by themselves went from {before:.0%} to {now:.0%}.")
    return found


def divergence(
    policy: nn.Module, start: nn.Module, scored: Scored, pad_token_id: int, settings: GenerationSettings
) -> Float[np.ndarray, "prompts n"] | None:
    """The log-ratios whose mean is the KL; None where the samples are not from the whole distribution."""
    if settings.temperature == 0 or settings.top_p < 1 or settings.top_k > 0:
        return None
    return log_ratios(policy, start, scored.samples, pad_token_id, settings.temperature)
