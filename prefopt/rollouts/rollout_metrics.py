"""What is logged of a rollout: of its completions and rewards, of the KL, and of the generator."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from prefopt.data import TokenizedExample
from prefopt.rollouts.rollout import Group


def completion_metrics(groups: Sequence[Group], parts: Mapping[str, list[float]]) -> dict[str, Tensor]:
    """Rewards, lengths and repetitions, one value for each completion (``reward/best``: for each prompt).

    Args:
        groups: The sampled and rewarded completions.
        parts: The reward's components by name; they are logged where there are several.
    """
    samples = [sample for group in groups for sample in group.samples]
    values = {
        "reward": [reward for group in groups for reward in group.rewards],
        "reward/best": [max(group.rewards) for group in groups],
        "completions/length": [float(len(sample.ids)) for sample in samples],
        "completions/ended": [float(sample.ended) for sample in samples],
        "completions/repetition": [repeated_trigrams(sample.ids) for sample in samples],
    }
    if len(parts) > 1:
        values |= {f"reward/{name}": part for name, part in parts.items()}
    return {name: torch.tensor(value) for name, value in values.items()}


def generator_gap(groups: Sequence[Group], share: int) -> dict[str, Tensor]:
    """How far the generator's own log-probs are from the scorer's, in nats at a token; nothing if it keeps none.

    Args:
        groups: Scored groups.
        share: The number of completions, the first of each group, that the policy sampled.
    """
    samples = [sample for group in groups for sample in group.samples[:share]]
    scored = [tokens["old_logps"] for group in groups for tokens in group.tokens[:share]]
    if any(sample.logps is None for sample in samples):
        return {}
    gaps = np.concatenate([sample.logps for sample in samples]) - np.concatenate(scored)
    return {"generator/gap": torch.from_numpy(np.abs(gaps))}


def critic_metrics(examples: Sequence[TokenizedExample]) -> dict[str, Tensor]:
    """1 − Var(R − V)/Var(R) over all tokens of a rollout: the share of the returns that the critic foresaw.

    0 is a critic that says the same everywhere, 1 one that is always right; below 0 it is worse than none. Nothing
    without a critic.
    """
    if not examples or "returns" not in examples[0].labels:
        return {}
    returns, values = (np.concatenate([one.labels[name] for one in examples]) for name in ("returns", "old_values"))
    spread = returns.astype(np.float64).var()
    if spread == 0:
        return {}
    return {"value/explained_variance": torch.tensor([1 - (returns.astype(np.float64) - values).var() / spread])}


def repeated_trigrams(ids: np.ndarray) -> float:
    """The share of a completion's token trigrams that have stood in it before, 0 to 1."""
    trigrams = list(zip(ids[:-2].tolist(), ids[1:-1].tolist(), ids[2:].tolist(), strict=True))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0
