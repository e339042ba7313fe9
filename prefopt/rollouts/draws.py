"""How tokens are drawn: from the model's own distribution, with random numbers that belong to the completion."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from prefopt.core.numerics import keyed_uniform
from prefopt.rollouts.settings import GenerationSettings

CELLS = 1 << 22
"""Random numbers made at once: rows times vocabulary. More rows are drawn in turns, to bound the memory."""


@dataclass(frozen=True)
class SampleKeys:
    """What the random numbers of a call depend on, besides the number of a completion and the position of a token.

    A completion with the same keys is the same in whatever batch, and on whatever process, it is generated.

    Attributes:
        seed: The seed.
        prompts: A number for each prompt. Two prompts with the same number and the same text get the same completions.
        first: The number of the first completion of each prompt.
    """

    seed: int
    prompts: Sequence[int]
    first: int = 0

    @classmethod
    def fresh(cls, prompts: int) -> "SampleKeys":
        """Keys whose seed is drawn from torch's global random numbers, for callers that set their seed there."""
        return cls(int(torch.randint(2**62, ())), range(prompts))

    def of(self, prompts: Sequence[int]) -> "SampleKeys":
        """The keys of some of the prompts."""
        return SampleKeys(self.seed, [self.prompts[i] for i in prompts], self.first)

    def rows(self, n: int) -> Tensor:
        """Prompt and number of every completion, with n for each prompt, [R, 2]."""
        prompts = torch.tensor(list(self.prompts)).repeat_interleave(n)
        return torch.stack([prompts, self.first + torch.arange(n).repeat(len(self.prompts))], dim=1)


class TokenDraw(LogitsProcessor):
    """Draws each token, and leaves it as the only one that ``generate`` can take.

    argmax(logits/T + Gumbel noise) has exactly the law softmax(logits/T). The noise of a token depends on the seed, the
    prompt, the number of the completion and the position, and on nothing else.

    Args:
        settings: Temperature, truncation of the distribution and the least length.
        seed: The seed of the noise.
        rows: Prompt and number of every completion, [R, 2].
        position: The position of the next token in its completion.
        stops: The tokens that end a completion, which do not come before ``min_new_tokens``.

    Attributes:
        logps: Per position, the log-probability of the token that was drawn, under softmax(logits/T) before top-p,
            top-k and ``min_new_tokens``, [R]. Only one vocabulary row per completion is held at a time.
    """

    def __init__(
        self, settings: GenerationSettings, seed: int, rows: Tensor, position: int, stops: Sequence[int]
    ) -> None:
        self.settings, self.seed, self.rows, self.position = settings, seed, rows, position
        self.stops = list(stops)
        self.logps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = scores.float() / (self.settings.temperature or 1.0)
        size = max(1, CELLS // logits.shape[1])
        parts = zip(logits.split(size), self.rows.to(logits.device).split(size), strict=True)
        tokens = torch.cat([self._drawn(part, rows) for part, rows in parts])[:, None]
        self.logps.append(logits.log_softmax(dim=-1).gather(1, tokens)[:, 0])
        self.position += 1
        return torch.full_like(logits, -torch.inf).scatter_(1, tokens, 0.0)

    def _drawn(self, logits: Tensor, rows: Tensor) -> Tensor:
        """One token for each row, [R]."""
        if self.position < self.settings.min_new_tokens:
            logits = logits.index_fill(1, torch.tensor(self.stops, device=logits.device), -torch.inf)
        if self.settings.temperature == 0:
            return logits.argmax(dim=1)
        logits = truncated(logits, top_k=self.settings.top_k, top_p=self.settings.top_p)
        vocabulary = torch.arange(logits.shape[1], device=logits.device)
        # Double precision: the largest noise of a vocabulary comes from numbers that float32 has no digits for.
        uniform = keyed_uniform(self.seed, rows[:, :1], rows[:, 1:], self.position, vocabulary)
        return (logits - uniform.log_().neg_().log_()).argmax(dim=1)


def truncated(logits: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Logits of the k most likely tokens, and of the smallest set with a total probability of p; −∞ elsewhere."""
    if 0 < top_k < logits.shape[1]:
        least = logits.topk(top_k, dim=1).values[:, -1:]
        logits = torch.where(logits < least, -torch.inf, logits)
    if top_p < 1:
        sorted_logits, order = logits.sort(dim=1, descending=True)
        probabilities = sorted_logits.softmax(dim=1)
        # A token is kept if those before it do not reach p by themselves; the most likely one always is.
        before = probabilities.cumsum(dim=1) - probabilities
        dropped = (before >= top_p).scatter(1, order, before >= top_p)
        logits = torch.where(dropped, -torch.inf, logits)
    return logits
