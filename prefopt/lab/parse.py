"""A recogniser for the lab's grammar: text → sentences, each with what it says or the verdict "ungrammatical"."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from prefopt.lab.grammar import LABELS, RULES, SENTENCE, WORDS, Part, Rule, Symbol

_TOKEN = re.compile(r"[A-Za-z]+(?:'[a-z]+)?|[^\sA-Za-z]")
_END = (".", "!", "?")
_KNOWN = frozenset(WORDS)
_MAX_WORDS = 40  # no sentence of the grammar is longer


@dataclass(frozen=True)
class Sentence:
    """One sentence of a text.

    Attributes:
        words: its words and punctuation marks as written.
        grammatical: whether the grammar derives it, capital letter and final mark included.
        claims: (aspect, value) of each claim, value -4 to 4; a verdict has the aspect "overall".
        places, cuisines: names mentioned; a dish mentions its cuisine (listed under ``dishes``).
        dishes: the cuisine of each dish mentioned.
        aside: a sentence that has nothing to do with a restaurant.
    """

    words: tuple[str, ...]
    grammatical: bool
    claims: tuple[tuple[str, int], ...] = ()
    places: tuple[str, ...] = ()
    cuisines: tuple[str, ...] = ()
    dishes: tuple[str, ...] = ()
    aside: bool = False


def parse(text: str) -> list[Sentence]:
    """Split a text into sentences and parse each.

    Sentences end at ``.``, ``!`` or ``?``; what follows the last of these is one more, ungrammatical, sentence.
    Any string is accepted; one without a visible character gives an empty list.
    """
    return [parse_sentence(words) for words in _split(text)]


@lru_cache(maxsize=65536)
def parse_sentence(words: tuple[str, ...]) -> Sentence:
    """Parse one sentence, given as words and punctuation marks."""
    labels = _derive(words)
    if labels is None:
        return Sentence(words, grammatical=False)
    by_kind: dict[str, list[Symbol]] = {}
    for label in labels:
        by_kind.setdefault(label[0], []).append(label)
    claims = [(label[1], label[2]) for label in by_kind.get("CLAUSE", ())]
    claims += [("overall", label[1]) for label in by_kind.get("VERDICT", ())]
    names = {kind: tuple(label[1] for label in by_kind.get(kind, ())) for kind in ("PLACE", "CUISINE", "DISH")}
    return Sentence(
        words,
        grammatical=True,
        claims=tuple(claims),
        places=names["PLACE"],
        cuisines=names["CUISINE"],
        dishes=names["DISH"],
        aside="ASIDE" in by_kind,
    )


def _split(text: str) -> Iterator[tuple[str, ...]]:
    words: list[str] = []
    for word in _TOKEN.findall(text):
        words.append(word)
        if word in _END:
            yield tuple(words)
            words = []
    if words:
        yield tuple(words)


def _derive(words: tuple[str, ...]) -> tuple[Symbol, ...] | None:
    """The labels of a derivation of all the words, or None where there is none."""
    if len(words) > _MAX_WORDS or not words[0][0].isupper():
        return None
    lowered = words[0][0].lower() + words[0][1:]
    first = lowered if lowered in _KNOWN else words[0]
    chart = _Chart((first, *words[1:]))
    return next((labels for end, labels in chart.spans(SENTENCE, 0) if end == len(words)), None)


class _Chart:
    """Top-down recognition with every result kept, so that the work is bounded by symbols times positions."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words
        self.known: dict[tuple[Symbol, int], list[tuple[int, tuple[Symbol, ...]]]] = {}

    def spans(self, symbol: Symbol, start: int) -> list[tuple[int, tuple[Symbol, ...]]]:
        """Where ``symbol`` can end when it starts at ``start``, one entry per end, with the labels below it."""
        key = (symbol, start)
        if key not in self.known:
            own = (symbol,) if symbol[0] in LABELS else ()
            found: dict[int, tuple[Symbol, ...]] = {}
            word = self.words[start] if start < len(self.words) else ""
            for rule in _BY_FIRST_WORD.get(symbol, {}).get(word, ()):
                for end, labels in self._follow(rule, start):
                    found.setdefault(end, own + labels)
            self.known[key] = list(found.items())
        return self.known[key]

    def _follow(self, rule: Rule, start: int) -> list[tuple[int, tuple[Symbol, ...]]]:
        reached = [(start, ())]
        for part in rule.parts:
            reached = [step for at, labels in reached for step in self._step(part, at, labels)]
        return reached

    def _step(self, part: Part, at: int, labels: tuple) -> list[tuple[int, tuple[Symbol, ...]]]:
        if isinstance(part, str):
            return [(at + 1, labels)] if at < len(self.words) and self.words[at] == part else []
        return [(end, labels + more) for end, more in self.spans(part, at)]


def _first_words() -> dict[Symbol, dict[str, list[Rule]]]:
    """For each nonterminal, its rules by the words that they can start with."""
    first: dict[Symbol, frozenset[str]] = {}

    def of(part: Part) -> frozenset[str]:
        if isinstance(part, str):
            return frozenset({part})
        if part not in first:
            first[part] = frozenset().union(*(of(rule.parts[0]) for rule in RULES[part]))
        return first[part]

    table: dict[Symbol, dict[str, list[Rule]]] = {}
    for symbol, rules in RULES.items():
        for rule in rules:
            for word in of(rule.parts[0]):
                table.setdefault(symbol, {}).setdefault(word, []).append(rule)
    return table


_BY_FIRST_WORD = _first_words()
