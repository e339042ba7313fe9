"""What a generator returns, and what rewards can know of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefopt.data import PromptExample
from prefopt.rewards.calling import join_columns


@dataclass(frozen=True)
class Sample:
    """One sampled completion.

    Attributes:
        ids: The int32 token ids, with the end-of-sequence token if it was reached.
        text: The completion as text, without special tokens.
        ended: Whether it ended by itself rather than at the token limit.
        logps: The generator's own log-probability of each token at the sampling temperature, float32, if it keeps
            them. They are compared with the scorer's, never trained on.
        limit: The number of tokens that it could have had: less than was asked for where the model's context ends
            earlier. None if that is the number asked for.
    """

    ids: np.ndarray
    text: str
    ended: bool
    logps: np.ndarray | None = None
    limit: int | None = None


def columns_of(
    sources: Sequence[PromptExample], samples: Sequence[Sample], group: Sequence[int], max_new_tokens: int
) -> dict[str, list[Any]]:
    """Every column that a reward can ask for: those of the dataset, and `ROLLOUT_COLUMNS`.

    Args:
        sources: The example of each completion, with its columns.
        samples: The completions.
        group: For each completion, a number that the completions of one prompt share.
        max_new_tokens: The token limit that was asked for.

    Raises:
        UsageError: see `join_columns`.
    """
    names = sorted({name for source in sources for name in source.columns})
    facts = {
        "ended": [sample.ended for sample in samples],
        "lengths": [len(sample.ids) for sample in samples],
        "max_new_tokens": [max_new_tokens if s.limit is None else s.limit for s in samples],
        "group": list(group),
    }
    return join_columns({name: [source.columns.get(name) for source in sources] for name in names}, facts)
