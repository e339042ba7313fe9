"""The gold reward: how good a review is, computed from the parse of its text, in [0, 1].

.. math:: reward = grammar · variety · sqrt(sentiment · topic)

- ``grammar``: share of the sentences that the grammar derives. An unfinished last sentence is one that it does not.
- ``variety``: share of the sentences that are new. One repeats when at least half of its content words stand in one
  earlier sentence, or when it uses a content word twice.
- ``sentiment``: mean claim value, mapped from [-4, 4] to [0, 1]; 0 when nothing is claimed about the place asked for.
- ``topic``: focus · (0.8 · coverage + 0.2 · named). Focus is the share of grammatical sentences that are neither an
  aside nor about another place or another cuisine's dishes; coverage the share of the aspects asked for that some
  claim is about; named is 1 when the place, its cuisine or one of its dishes is mentioned, else 0.

Only grammatical sentences on topic make claims. The best possible value is 1, and one sentence can reach it: every
component is a share, so length alone gains nothing. An empty text, or one without a grammatical claim, has 0.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.core.errors import UsageError
from prefopt.lab.lexicon import FUNCTION_WORDS
from prefopt.lab.parse import Sentence, parse
from prefopt.lab.writer import Brief

BEST_REWARD = 1.0


@dataclass(frozen=True)
class Score:
    """The components of the gold reward, each in [0, 1]."""

    grammar: float
    variety: float
    sentiment: float
    topic: float

    @property
    def reward(self) -> float:
        """The gold reward, in [0, 1]."""
        return self.grammar * self.variety * math.sqrt(self.sentiment * self.topic)


def score(prompt: str, completion: str) -> Score:
    """Judge one completion of one prompt.

    Raises:
        DataError: the prompt is not one of the lab's. Any completion is accepted.
    """
    brief, sentences = Brief.read(prompt), parse(completion)
    sound = [sentence for sentence in sentences if sentence.grammatical]
    relevant = [sentence for sentence in sound if _on_topic(sentence, brief)]
    if not relevant:
        return Score(len(sound) / max(len(sentences), 1), _variety(sentences), 0.0, 0.0)
    values = [value for sentence in relevant for _, value in sentence.claims]
    aspects = {aspect for sentence in relevant for aspect, _ in sentence.claims}
    coverage = len(aspects & set(brief.aspects)) / len(brief.aspects)
    named = any(sentence.places or sentence.cuisines or sentence.dishes for sentence in relevant)
    return Score(
        grammar=len(sound) / len(sentences),
        variety=_variety(sentences),
        sentiment=(1 + statistics.fmean(values) / 4) / 2 if values else 0.0,
        topic=len(relevant) / len(sound) * (0.8 * coverage + 0.2 * named),
    )


def gold_reward(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """The gold reward of each completion, in [0, 1]; the signature of every reward function here.

    Args:
        prompts: the prompt of each completion.
        completions: texts, as many as prompts.
        columns: other columns of the dataset; not used.

    Raises:
        UsageError: there are not as many completions as prompts.
        DataError: a prompt is not one of the lab's.
    """
    if len(prompts) != len(completions):
        raise UsageError(f"gold_reward got {len(prompts)} prompts and {len(completions)} completions; it needs pairs.")
    return [score(prompt, text).reward for prompt, text in zip(prompts, completions, strict=True)]


def _on_topic(sentence: Sentence, brief: Brief) -> bool:
    wrong_place = any(place != brief.place for place in sentence.places)
    wrong_kind = any(cuisine != brief.cuisine for cuisine in (*sentence.cuisines, *sentence.dishes))
    return not (sentence.aside or wrong_place or wrong_kind)


def _variety(sentences: Sequence[Sentence]) -> float:
    """Share of sentences that repeat neither an earlier one nor themselves; 0 for no sentences."""
    earlier: list[set[str]] = []
    new = 0
    for sentence in sentences:
        content = [word.lower() for word in sentence.words if word.lower() not in _FUNCTION_WORDS]
        words = set(content)
        known = any(2 * len(words & before) >= len(words) for before in earlier) if words else False
        new += not known and len(words) == len(content)
        earlier.append(words)
    return new / len(sentences) if sentences else 0.0


_FUNCTION_WORDS = frozenset(word.lower() for word in FUNCTION_WORDS)
