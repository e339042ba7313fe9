"""Preference data of the lab: prompts, demonstrations, and pairs that a noisy judge has labelled by gold reward."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

from prefopt.core.errors import UsageError
from prefopt.lab import lexicon as lex
from prefopt.lab.reward import gold_reward
from prefopt.lab.writer import Brief, draw_author, write_review

Row = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Who says which of several reviews is best and which is worst.

    Every reward gets Gumbel noise of its own, then they are ranked. Between two reviews that is Bradley–Terry:

    .. math:: P(a ≻ b) = flip + (1 - 2·flip) · σ((r_a - r_b) / temperature)

    Attributes:
        temperature: difference in gold reward at which the better of two wins 73 % of the time, at least 0; at 0 the
            better one always wins, and equal ones by a coin.
        flip: share of verdicts turned round whatever the rewards, in [0, 0.5].

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

    def best_and_worst(self, rewards: Sequence[float], rng: random.Random) -> tuple[int, int]:
        """The places of the best and of the worst review among two or more, as this judge sees them."""
        noisy = [(reward + self.temperature * _gumbel(rng), rng.random()) for reward in rewards]
        ranked = sorted(range(len(rewards)), key=noisy.__getitem__)
        worst, best = ranked[0], ranked[-1]
        return (worst, best) if rng.random() < self.flip else (best, worst)


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
        completions: for each prompt two or more, from `write_completions` or sampled from a model. The judge's best
            becomes chosen and its worst rejected; equal ones and blank ones do not take part.
        judge: by default `Judge()`.
        seed: of the judge's noise.

    Returns:
        Rows ``{"prompt", "chosen", "rejected"}`` of plain strings, at most one for each prompt. Completions begin with
        a space, so that prompt and completion joined read as one text.

    Raises:
        UsageError: there are not as many groups of completions as prompts.
        DataError: a prompt is not one of the lab's.
    """
    if len(prompts) != len(completions):
        raise UsageError(f"make_pairs got {len(prompts)} prompts and {len(completions)} groups of completions.")
    judge, rng = judge or Judge(), random.Random(f"judge {seed}")
    rows = []
    for prompt, group in zip(prompts, completions, strict=True):
        distinct = [text for text in dict.fromkeys(group) if text.strip()]
        if len(distinct) > 1:
            best, worst = judge.best_and_worst(gold_reward([prompt] * len(distinct), distinct), rng)
            rows.append({"prompt": prompt, "chosen": _spaced(distinct[best]), "rejected": _spaced(distinct[worst])})
    return rows


def demonstrations(prompts: Sequence[str], completions: Sequence[str]) -> list[Row]:
    """Rows ``{"prompt", "completion"}`` for sft, one for each prompt."""
    return [{"prompt": p, "completion": _spaced(c)} for p, c in zip(prompts, completions, strict=True)]


def prompt_rows(prompts: Sequence[str]) -> list[Row]:
    """Rows ``{"prompt"}`` for online algorithms."""
    return [{"prompt": prompt} for prompt in prompts]


def _gumbel(rng: random.Random) -> float:
    return -math.log(-math.log(rng.random() or 0.5))


def _spaced(text: str) -> str:
    return " " + text.lstrip()
