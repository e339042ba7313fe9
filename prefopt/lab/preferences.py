"""Preference data of the lab: prompts, demonstrations, and pairs that a noisy judge has labelled by gold reward."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

from prefopt.errors import UsageError
from prefopt.lab import lexicon as lex
from prefopt.lab.reward import gold_reward
from prefopt.lab.writer import Brief, draw_author, write_review

Row = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Who says which of two reviews is better.

    .. math:: P(a ≻ b) = flip + (1 - 2·flip) · σ((r_a - r_b) / temperature)

    Attributes:
        temperature: difference in gold reward at which the better one wins 73 % of the time (Bradley–Terry), at
            least 0; at 0 the better one always wins, and equal ones by a coin.
        flip: share of labels turned round whatever the rewards, in [0, 0.5].

    Raises:
        UsageError: a value out of range.
    """

    temperature: float = 0.1
    flip: float = 0.05

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"judge: temperature={self.temperature!r} must be a finite number of at least 0.")
        if not 0 <= self.flip <= 0.5:
            raise UsageError(f"judge: flip={self.flip!r} must be between 0 and 0.5.")

    def probability(self, first: float, second: float) -> float:
        """P(first ≻ second), from the gold rewards of both."""
        gap = first - second
        if self.temperature == 0:
            sure = 0.5 if gap == 0 else float(gap > 0)
        else:
            sure = 0.5 * (1 + math.tanh(gap / (2 * self.temperature)))
        return self.flip + (1 - 2 * self.flip) * sure


def split_prompts(train: int, held_out: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Distinct prompts for training and for evaluation; none is in both.

    Raises:
        UsageError: more are asked for than there are.
    """
    aspects = list(combinations(lex.ASPECTS, 2))
    every = [Brief(place, cuisine, pair).prompt for place, cuisine, pair in product(lex.PLACES, lex.CUISINES, aspects)]
    if train + held_out > len(every):
        raise UsageError(f"{train} + {held_out} prompts were asked for; the lab has {len(every)}.")
    chosen = random.Random(f"prompts {seed}").sample(every, train + held_out)
    return chosen[:train], chosen[train:]


def write_completions(prompts: Sequence[str], n: int, seed: int = 0) -> list[list[str]]:
    """For each prompt ``n`` reviews by authors of every quality, as in the pretraining corpus."""
    rng = random.Random(f"completions {seed}")
    return [[write_review(Brief.read(prompt), draw_author(rng), rng) for _ in range(n)] for prompt in prompts]


def make_pairs(
    prompts: Sequence[str], completions: Sequence[Sequence[str]], judge: Judge | None = None, seed: int = 0
) -> list[Row]:
    """Let a judge compare completions of the same prompt.

    Args:
        prompts: n prompts of the lab.
        completions: for each prompt its completions, from `write_completions` or sampled from a model. The first two
            that differ are compared, then the next two, and so on; equal ones are left out.
        judge: by default `Judge()`.
        seed: of the judge's noise.

    Returns:
        Rows ``{"prompt", "chosen", "rejected"}`` of plain strings. Completions begin with a space, so that prompt and
        completion joined read as one text.

    Raises:
        UsageError: there are not as many groups of completions as prompts.
        DataError: a prompt is not one of the lab's.
    """
    if len(prompts) != len(completions):
        raise UsageError(f"make_pairs got {len(prompts)} prompts and {len(completions)} groups of completions.")
    judge, rng = judge or Judge(), random.Random(f"judge {seed}")
    rows = []
    for prompt, group in zip(prompts, completions, strict=True):
        distinct = list(dict.fromkeys(group))
        rewards = gold_reward([prompt] * len(distinct), distinct)
        for i in range(0, len(distinct) - 1, 2):
            first_wins = rng.random() < judge.probability(rewards[i], rewards[i + 1])
            chosen, rejected = (i, i + 1) if first_wins else (i + 1, i)
            rows.append(
                {"prompt": prompt, "chosen": _spaced(distinct[chosen]), "rejected": _spaced(distinct[rejected])}
            )
    return rows


def demonstrations(prompts: Sequence[str], completions: Sequence[str]) -> list[Row]:
    """Rows ``{"prompt", "completion"}`` for sft, one for each prompt."""
    return [{"prompt": p, "completion": _spaced(c)} for p, c in zip(prompts, completions, strict=True)]


def prompt_rows(prompts: Sequence[str]) -> list[Row]:
    """Rows ``{"prompt"}`` for online algorithms."""
    return [{"prompt": prompt} for prompt in prompts]


def _spaced(text: str) -> str:
    return " " + text.lstrip()
