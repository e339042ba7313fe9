"""What a generator returns."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sample:
    """One sampled completion.

    Attributes:
        ids: int32 token ids, with the end-of-sequence token if it was reached.
        text: the completion as text, without special tokens.
        ended: whether it ended by itself rather than at the token limit.
        logps: the generator's own log-probability of each token at the sampling temperature, float32, if it keeps
            them. They are compared with the scorer's, never trained on.
    """

    ids: np.ndarray
    text: str
    ended: bool
    logps: np.ndarray | None = None
