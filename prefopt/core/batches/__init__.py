"""What an objective sees: log-probabilities of completions, grouped the way its data is grouped.

A batch holds log-probabilities (or a reward model's scores); token ids, prompts and padding have been left behind in
`scoring`. All containers are frozen dataclasses over tensors of one device. Their *counts* (how many examples, tokens,
desirable rows ...) depend on lengths and labels alone, so that the trainer knows the denominators of a whole optimizer
step before the first forward pass of it.
"""

from prefopt.core.batches.base import Batch
from prefopt.core.batches.completions import Completions, TokenLogps, concatenate
from prefopt.core.batches.preferences import Demonstrations, Labelled, Pairs, Ranked
from prefopt.core.batches.rollouts import Rollouts

__all__ = [
    "Batch",
    "Completions",
    "Demonstrations",
    "Labelled",
    "Pairs",
    "Ranked",
    "Rollouts",
    "TokenLogps",
    "concatenate",
]
