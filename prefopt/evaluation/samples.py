"""Sampled completions with their rewards, compared with those of another model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from prefopt.core.micro_batch import MicroBatch
from prefopt.data import PromptExample, TokenizedExample, collate
from prefopt.rollouts import Sample
from prefopt.scoring import score

ROWS = 128
"""Completions per forward pass of scoring."""


@dataclass(frozen=True)
class Samples:
    """k completions of each of n prompts.

    Attributes:
        prompts: as in the dataset, text or messages.
        prompt_ids: the same as tokens.
        groups: n lists of k samples.
        rewards: the reward of each.
    """

    prompts: list[Any]
    prompt_ids: list[np.ndarray]
    groups: list[list[Sample]]
    rewards: Float[np.ndarray, "n k"]

    @property
    def lengths(self) -> Float[np.ndarray, "n k"]:
        """Tokens per completion, the end-of-sequence token included."""
        return np.array([[float(len(sample.ids)) for sample in group] for group in self.groups])


def win_rates(policy: Samples, start: Samples) -> Float[np.ndarray, " n"]:
    """For each prompt, the share of its k² comparisons of a policy's with a start's completion that the policy wins.

    Ties count one half. The two must have been sampled with different seeds, or equal models would copy each other.
    """
    difference = policy.rewards[:, :, None] - start.rewards[:, None, :]
    return (1 + np.sign(difference)).mean(axis=(1, 2)) / 2


@torch.no_grad()
def log_ratios(
    policy: nn.Module, start: nn.Module, samples: Samples, pad_token_id: int, temperature: float = 1.0
) -> Float[np.ndarray, "n k"]:
    """Σ_t [log π(y_t) − log π_0(y_t)] of each completion, in nats, both at the temperature of the sampling.

    On the policy's own samples their mean estimates KL(π ‖ π_0) per completion (of completions cut at the token limit,
    where it cuts). Single values may be negative; the divergence is not.
    """
    rows = [
        TokenizedExample(i, prompt, (each.ids,), None, {}, PromptExample(text))
        for i, (text, prompt, group) in enumerate(zip(samples.prompts, samples.prompt_ids, samples.groups, strict=True))
        for each in group
    ]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt) + len(rows[i].completions[0]))
    ratios, models = np.empty(len(rows)), {"logps": policy, "ref_logps": start}
    with evaluating(policy), evaluating(start):
        for chunk in (order[i : i + ROWS] for i in range(0, len(order), ROWS)):
            batch = collate([rows[i] for i in chunk], pad_token_id)
            values = {name: _score(model, batch, temperature) for name, model in models.items()}
            ratios[chunk] = batch.rows.layout.completions(values).log_ratio.numpy()
    return ratios.reshape(samples.rewards.shape)


def _score(model: nn.Module, batch: MicroBatch, temperature: float) -> Float[Tensor, " k"]:
    """Log-probabilities on the model's own device, brought to the CPU in float64."""
    padded = batch.to(next(model.parameters()).device).rows
    return score(model, padded, temperature=temperature)["logps"].cpu().double()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode for the time of a ``with`` block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
