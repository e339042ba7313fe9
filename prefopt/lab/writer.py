"""Briefs (what a prompt asks for) and authors of very different quality who write the reviews.

The corpus that the starting model is pretrained on is written by all of these authors, so the model starts out as a
mixture of them: pleased and angry, careful and sloppy, to the point and wandering.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prefopt.core.errors import DataError
from prefopt.lab import lexicon as lex
from prefopt.lab.grammar import Part, about, expand, write
from prefopt.lab.parse import parse

_PROMPT = re.compile(r"Review of (?P<place>.+), a (?P<cuisine>.+) \((?P<first>\w+) and (?P<second>\w+)\):")


@dataclass(frozen=True)
class Brief:
    """What a prompt asks for: one place, its cuisine, and the two aspects to write about."""

    place: str
    cuisine: str
    aspects: tuple[str, str]

    @property
    def prompt(self) -> str:
        """The prompt, such as ``"Review of Luigi's, a pizza place (food and price):"``."""
        return f"Review of {self.place}, a {self.cuisine} ({' and '.join(self.aspects)}):"

    @classmethod
    def read(cls, prompt: str) -> "Brief":
        """Read a prompt back.

        Raises:
            DataError: the text is not a prompt of this world.
        """
        match = _PROMPT.fullmatch(prompt.strip())
        if match:
            brief = cls(match["place"], match["cuisine"], (match["first"], match["second"]))
            known = brief.place in lex.PLACES and brief.cuisine in lex.CUISINES
            if known and set(brief.aspects) <= set(lex.ASPECTS):
                return brief
        raise DataError(f"not a prompt of the lab: {prompt!r}; it asks for a review as {EXAMPLE.prompt!r} does.")


LONGEST = 28  # words after which no further sentence of the plan is begun
EXAMPLE = Brief("Saffron", "noodle bar", ("service", "price"))


@dataclass(frozen=True)
class Author:
    """How somebody writes.

    Attributes:
        tone: relative frequency of each claim value, by value.
        slips: share of sentences with a mistake of grammar.
        neglect: share of the aspects asked for that are left out.
        wandering: chance, after each sentence, of one that is off topic.
        repeats: chance, after each sentence, of saying it again.
        mix_ups: chance that a sentence is about another place or the dishes of another cuisine.
    """

    tone: dict[int, float]
    slips: float = 0.0
    neglect: float = 0.0
    wandering: float = 0.0
    repeats: float = 0.0
    mix_ups: float = 0.0


BEST = Author(tone={4: 1.0})

_TONES = (
    {4: 2, 3: 4, 2: 3, 1: 1},
    {3: 2, 2: 4, 1: 3, -1: 1},
    {3: 1, 2: 2, 1: 2, -1: 2, -2: 2, -3: 1},
    {-3: 2, -2: 4, -1: 3, 1: 1},
    {-4: 2, -3: 4, -2: 3, -1: 1},
)
_TONE_WEIGHTS = (3, 4, 3, 2, 1)


def draw_author(rng: random.Random) -> Author:
    """Draw an author from the population behind the corpus."""
    return Author(
        tone=rng.choices(_TONES, _TONE_WEIGHTS)[0],
        slips=rng.choice((0.0, 0.0, 0.15)),
        neglect=rng.choice((0.0, 0.0, 0.3)),
        wandering=rng.choice((0.0, 0.0, 0.2)),
        repeats=rng.choice((0.0, 0.0, 0.25)),
        mix_ups=rng.choice((0.0, 0.0, 0.06)),
    )


def draw_brief(rng: random.Random) -> Brief:
    """Draw what to ask for."""
    first, second = sorted(rng.sample(range(len(lex.ASPECTS)), 2))
    aspects = (lex.ASPECTS[first], lex.ASPECTS[second])
    return Brief(rng.choice(lex.PLACES), rng.choice(tuple(lex.CUISINES)), aspects)


def write_review(brief: Brief, author: Author, rng: random.Random) -> str:
    """Write one review: an opener at times, claims, a verdict at times, and whatever the author adds or spoils.

    The author stops when there are `LONGEST` words or more, so a review has fewer than twice as many.
    """
    sentences: list[str] = []
    for parts in _plan(brief, author, rng):
        if sum(len(sentence.split()) for sentence in sentences) >= LONGEST:
            break
        sentence = _say(parts, brief, author, rng)
        sentences.append(sentence)
        if rng.random() < author.repeats:
            sentences.append(sentence)
        if rng.random() < author.wandering:
            sentences.append(_say((("ASIDE",),), brief, author, rng))
    return " ".join(sentences)


def corpus(size: int, seed: int) -> Iterator[tuple[Brief, str]]:
    """The pretraining corpus: ``size`` briefs with reviews by authors of every quality, the same for one seed."""
    rng = random.Random(f"corpus {seed}")
    for _ in range(size):
        brief = draw_brief(rng)
        yield brief, write_review(brief, draw_author(rng), rng)


def _plan(brief: Brief, author: Author, rng: random.Random) -> list[tuple[Part, ...]]:
    """The sentences to write, as grammar parts: opener, claims in any order, verdict."""
    aspects = [aspect for aspect in brief.aspects if rng.random() >= author.neglect]
    aspects += [aspect for aspect in lex.ASPECTS if aspect not in brief.aspects and rng.random() < 0.1]
    rng.shuffle(aspects)
    claims = [("CLAUSE", aspect, _value(author, rng)) for aspect in aspects]
    plan: list[tuple[Part, ...]] = [(("OPENER",),)] if rng.random() < 0.55 else []
    while claims:
        first = claims.pop()
        if claims and rng.random() < 0.35:
            plan.append(_joined(first, claims.pop()))
        elif rng.random() < 0.2:
            plan.append((("ADVERB", rng.choice((0, _sign(first)))), ",", first))
        else:
            plan.append((first,))
    if rng.random() < 0.5 or not plan:
        plan.append((("VERDICT", _value(author, rng)),))
    return plan


def _joined(first: tuple, second: tuple) -> tuple[Part, ...]:
    return (first, ",", "and" if _sign(first) == _sign(second) else "but", second)


def _say(parts: Sequence[Part], brief: Brief, author: Author, rng: random.Random) -> str:
    place, cuisine = brief.place, brief.cuisine
    if rng.random() < author.mix_ups:
        place, cuisine = rng.choice(lex.PLACES), rng.choice(tuple(lex.CUISINES))
    words = [*expand(parts, rng, about(cuisine, place)), "!" if rng.random() < 0.07 else "."]
    return _spoil(words, rng) if rng.random() < author.slips else write(words)


def _spoil(words: Sequence[str], rng: random.Random) -> str:
    """Make one mistake of grammar: agreement, word order, a word left out, a word doubled, or a sentence cut off."""
    while True:
        wrong, at = list(words), rng.randrange(len(words) - 2)
        kind = rng.randrange(5)
        if kind == 0:
            wrong = [{"was": "were", "were": "was"}.get(word, word) for word in wrong]
        elif kind == 1:
            wrong[at], wrong[at + 1] = wrong[at + 1], wrong[at]
        elif kind == 2:
            del wrong[at]
        elif kind == 3:
            wrong.insert(at, wrong[at])
        else:
            del wrong[at + 1 : -1]
        text = write(wrong)
        readable = text[0].isalpha() and ",." not in text and ",," not in text
        if readable and not any(sentence.grammatical for sentence in parse(text)):
            return text


def _value(author: Author, rng: random.Random) -> int:
    return rng.choices(tuple(author.tone), tuple(author.tone.values()))[0]


def _sign(claim: tuple) -> int:
    return 1 if claim[2] > 0 else -1
