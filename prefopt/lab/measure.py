"""What a trained policy is worth: gold reward, win rate, KL, accuracy and length, each with its interval; and the cost.

Every interval is a 95 % t-interval. A prompt, or a held-out pair, is one observation: its samples are averaged first,
because completions of one prompt are not independent. Where an algorithm was trained with several seeds there is a
second interval, over seeds, which says how much another training run would differ.
"""

import ctypes
import gc
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from transformers import PreTrainedTokenizerBase

from prefopt.core.objective import Objective
from prefopt.data import DataSettings, Encoder, TokenizedDataset
from prefopt.evaluation.samples import ROWS, Samples, evaluating, log_ratios, win_rates
from prefopt.evaluation.statistics import Estimate
from prefopt.models.reference import FrozenModel
from prefopt.rollouts import GenerationSettings, TransformersGenerator
from prefopt.scoring.scorer import Scorer

GoldReward = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""``f(prompts, completions) -> list[float]``, in [0, 1], higher is better."""


def sample(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    reward: GoldReward,
    *,
    k: int = 2,
    max_new_tokens: int = 64,
    seed: int = 0,
    batch_size: int = 256,
) -> Samples:
    """Sample k completions of each prompt at temperature 1 and score them.

    The same seed gives the same samples; the global random state is as before when it returns.
    """
    encoder = Encoder(tokenizer, DataSettings())
    ids = [encoder.prompt(prompt) for prompt in prompts]
    settings = GenerationSettings(n=k, max_new_tokens=max_new_tokens, batch_size=batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        groups = TransformersGenerator(tokenizer, encoder.stop_ids()).generate(model, ids, settings)
    texts = [each.text for group in groups for each in group]
    rewards = reward([prompt for prompt in prompts for _ in range(k)], texts)
    return Samples(list(prompts), ids, groups, np.asarray(rewards, dtype=np.float64).reshape(len(prompts), k))


class HeldOutPairs:
    """Pairs that policies are asked to order. What the start says of them is computed once.

    Args:
        pairs: from `prepare_dataset`.
        start: the starting model, the reference of objectives that need one.
    """

    def __init__(self, pairs: TokenizedDataset, start: nn.Module) -> None:
        self.start = FrozenModel(start, "the start")
        size, device = ROWS // 2, next(start.parameters()).device
        self.batches = [
            pairs.collate([pairs[i] for i in range(begin, min(begin + size, len(pairs)))]).to(device)
            for begin in range(0, len(pairs), size)
        ]

    @torch.no_grad()
    def outcomes(self, objective: Objective, policy: nn.Module) -> Float[np.ndarray, " n"]:
        """1, ½ or 0 for each pair: the objective's implicit reward prefers chosen, neither, or rejected.

        It is ``objective.reward`` for every algorithm, whatever data it trains on. For pairwise ones the mean is what
        ``Trainer.evaluate`` logs as ``eval_rewards/accuracies``.
        """
        scorer = Scorer(objective, self.start if objective.needs.reference else None)
        outcomes = []
        with evaluating(policy):
            # They are kept: the first objective with a reference scores it for all that follow.
            self.batches = [scorer.score_reference(policy, batch) for batch in self.batches]
            for batch in self.batches:
                rows = scorer.completions(policy, batch.rows, batch.ref_logps)
                n = len(rows) // 2
                outcomes.append((1 + torch.sign(objective.reward(rows[:n]) - objective.reward(rows[n:]))) / 2)
        return torch.cat(outcomes).double().cpu().numpy()


@dataclass(frozen=True)
class Measurement:
    """What one trained policy did: one value per held-out prompt, or per held-out pair.

    Attributes:
        reward: gold reward, mean of the prompt's samples, in [0, 1].
        length: tokens per completion, end-of-sequence token included.
        win_rate: share of comparisons with the start's completions that are won, in [0, 1]; None for the start.
        kl: log π − log π_0 per completion in nats; None for the start.
        accuracy: 1, ½ or 0 for each pair; None for the start.
    """

    reward: Float[np.ndarray, " prompts"]
    length: Float[np.ndarray, " prompts"]
    win_rate: Float[np.ndarray, " prompts"] | None = None
    kl: Float[np.ndarray, " prompts"] | None = None
    accuracy: Float[np.ndarray, " pairs"] | None = None


@dataclass
class Cost:
    """What a training run cost.

    Attributes:
        seconds: wall time.
        peak_mb: largest resident memory of the whole process in that time, in MB (10⁶ bytes): interpreter, libraries,
            data and model included. The kernel's own high-water mark, set back at the start, so nothing between two
            looks is missed. Where it cannot be set back (outside Linux) it is the largest since the process began.
        added_mb: how much of it came on top of what the process held at the start, after freed memory was returned;
            this is what tells algorithms apart.
    """

    seconds: float = 0.0
    peak_mb: float = 0.0
    added_mb: float = 0.0


@contextmanager
def costing() -> Iterator[Cost]:
    """Measure the block; the numbers are in the `Cost` it yields once the block has ended."""
    cost = Cost()
    gc.collect()
    _return_freed_memory()
    _reset_peak()
    before, began = _memory_mb("VmRSS"), time.perf_counter()
    yield cost
    cost.seconds = time.perf_counter() - began
    cost.peak_mb = _memory_mb("VmHWM")
    cost.added_mb = max(0.0, cost.peak_mb - before)


def _memory_mb(entry: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith(entry + ":"):
                return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _return_freed_memory() -> None:
    """Give memory that was freed back to the system, or one run's would count for the next; glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@dataclass(frozen=True)
class Result:
    """An algorithm over all its training seeds.

    Attributes:
        name: of the algorithm, or "start".
        seeds: training runs it stands for.
        reward: gold reward, in [0, 1].
        length: tokens per completion.
        win_rate: against the start, in [0, 1], ties one half; None for the start, as the next two.
        kl: KL(π ‖ π_0) per completion, in nats.
        accuracy: share of held-out pairs that the implicit reward orders rightly, in [0, 1], ties one half.
        cost: mean seconds and largest memory of a training run; None for the start.
    """

    name: str
    seeds: int
    reward: Estimate
    length: Estimate
    win_rate: Estimate | None = None
    kl: Estimate | None = None
    accuracy: Estimate | None = None
    cost: Cost | None = None

    @classmethod
    def of(cls, name: str, runs: Sequence[Measurement], costs: Sequence[Cost] = ()) -> Self:
        """Sum up training runs of one algorithm that were measured on the same prompts and pairs."""
        estimates = {
            key: Estimate.of(np.stack([getattr(run, key) for run in runs]))
            for key in ("reward", "length", "win_rate", "kl", "accuracy")
            if getattr(runs[0], key) is not None
        }
        cost = None
        if costs:
            peak = max(costs, key=lambda each: each.peak_mb)
            added = max(each.added_mb for each in costs)
            cost = Cost(float(np.mean([each.seconds for each in costs])), peak.peak_mb, added)
        return cls(name, len(runs), cost=cost, **estimates)


@dataclass
class Yardstick:
    """Measures policies against one starting model, on the same prompts and pairs.

    Attributes:
        start: the starting model, π_0.
        tokenizer: of all the policies.
        prompts: held-out prompts.
        pairs: held-out pairs, from `prepare_dataset`.
        reward: the gold reward.
        k: completions per prompt.
        max_new_tokens: where completions are cut.
        seed: of the sampling. The start is sampled with it, every policy with the next one.
        start_samples: completions of the start; drawn when it is made.
        held_out: the pairs, ready to be ordered.
    """

    start: nn.Module
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[str]
    pairs: TokenizedDataset
    reward: GoldReward
    k: int = 2
    max_new_tokens: int = 64
    seed: int = 0
    start_samples: Samples = field(init=False)
    held_out: HeldOutPairs = field(init=False)

    def __post_init__(self) -> None:
        self.held_out = HeldOutPairs(self.pairs, self.start)
        self.start_samples = self.sample(self.start, self.seed)

    def of_start(self) -> Measurement:
        """The starting model's own measurement."""
        samples = self.start_samples
        return Measurement(samples.rewards.mean(axis=1), samples.lengths.mean(axis=1))

    def measure(self, policy: nn.Module, objective: Objective) -> tuple[Measurement, Samples]:
        """Measure one trained policy; also the completions that were drawn for it."""
        samples = self.sample(policy, self.seed + 1)
        measurement = Measurement(
            reward=samples.rewards.mean(axis=1),
            length=samples.lengths.mean(axis=1),
            win_rate=win_rates(samples, self.start_samples),
            kl=log_ratios(policy, self.start, samples, self.pairs.pad_token_id).mean(axis=1),
            accuracy=self.held_out.outcomes(objective, policy),
        )
        return measurement, samples

    def sample(self, model: nn.Module, seed: int) -> Samples:
        """Completions of a model for the prompts, the same for the same seed."""
        options = {"k": self.k, "max_new_tokens": self.max_new_tokens, "seed": seed}
        return sample(model, self.tokenizer, self.prompts, self.reward, **options)
