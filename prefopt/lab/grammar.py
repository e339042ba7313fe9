"""The grammar of the lab's reviews, as data: one set of rules that both writes sentences and recognises them.

It is context-free. A nonterminal is a tuple ``(kind, *features)``, a terminal is a word; agreement, aspect and claim
value are features, so what a sentence means can be read off the nonterminals of its parse:

- ``("CLAUSE", aspect, value)``: a claim about one of `lexicon.ASPECTS`, value -4 (worst) to 4 (best), never 0
- ``("VERDICT", value)``: a claim about the visit as a whole
- ``("PLACE", name)``, ``("CUISINE", name)``, ``("DISH", cuisine)``: what is mentioned
- ``("OPENER",)`` and ``("ASIDE",)``: the occasion of the visit, and a sentence that has nothing to do with it

Rules with weight 0 are recognised and never written. There is no left recursion and no empty rule.
"""

import random
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import NamedTuple

from prefopt.lab import lexicon as lex

Symbol = tuple  # (kind, *features)
Part = Symbol | str

VALUES = (-4, -3, -2, -1, 1, 2, 3, 4)
NUMBERS = ("one", "many")
LABELS = frozenset({"CLAUSE", "VERDICT", "PLACE", "CUISINE", "DISH", "OPENER", "ASIDE"})
SENTENCE: Symbol = ("SENTENCE",)


class Rule(NamedTuple):
    """One way to write a nonterminal: its parts from left to right, and how often it is chosen (relative)."""

    parts: tuple[Part, ...]
    weight: float


Rules = dict[Symbol, list[Rule]]


def expand(parts: Sequence[Part], rng: random.Random, bindings: Mapping[Symbol, Part] | None = None) -> list[str]:
    """Write parts out as words.

    Args:
        parts: nonterminals and words from left to right.
        rng: the source of every choice.
        bindings: nonterminals to replace on sight, such as ``{("ANYDISH", "one"): ("DISH", "bakery", "one")}``.

    Returns:
        Words and punctuation marks, the first one not yet capitalised.
    """
    words: list[str] = []
    for part in parts:
        part = (bindings or {}).get(part, part)
        if isinstance(part, str):
            words.append(part)
            continue
        rules = [rule for rule in RULES[part] if rule.weight > 0]
        chosen = rng.choices(rules, [rule.weight for rule in rules])[0]
        words += expand(chosen.parts, rng, bindings)
    return words


def write(words: Sequence[str]) -> str:
    """Join words into a sentence: a capital first, no space before punctuation."""
    text = ""
    for word in words:
        text += word if word in ",.!" or not text else " " + word
    return text[:1].upper() + text[1:]


def about(cuisine: str, place: str) -> dict[Symbol, Part]:
    """Bindings that keep a text on one place: its name, its cuisine and its dishes."""
    bound: dict[Symbol, Part] = {("NAMED",): ("PLACE", place), ("KIND",): ("CUISINE", cuisine)}
    return bound | {("ANYDISH", number): ("DISH", cuisine, number) for number in NUMBERS}


def _build() -> Rules:
    rules: Rules = {}
    _mentions(rules)
    _adjectives(rules)
    _clauses(rules)
    _phrases(rules)
    _asides(rules)
    _sentences(rules)
    return rules


def _add(rules: Rules, symbol: Symbol, text: str | Sequence[Part], weight: float = 1.0, **slots: Part) -> None:
    """Add one rule. ``{name}`` in a text stands for the part ``slots[name]``."""
    parts = text.split() if isinstance(text, str) else text
    filled = (slots[part[1:-1]] if isinstance(part, str) and part.startswith("{") else part for part in parts)
    rules.setdefault(symbol, []).append(Rule(tuple(filled), weight))


def _mentions(rules: Rules) -> None:
    """Places, dishes, and what can be the subject of a claim."""
    for place in lex.PLACES:
        _add(rules, ("PLACE", place), place)
        _add(rules, ("NAMED",), [("PLACE", place)])
    for cuisine, dishes in lex.CUISINES.items():
        _add(rules, ("CUISINE", cuisine), cuisine)
        _add(rules, ("KIND",), [("CUISINE", cuisine)])
        for number, names in zip(NUMBERS, dishes, strict=True):
            for name in names:
                _add(rules, ("DISH", cuisine, number), f"the {name}")
                _add(rules, ("DISH", cuisine, number), f"my {name}", weight=0)
            _add(rules, ("ANYDISH", number), [("DISH", cuisine, number)])
    _add(rules, ("ANYPLACE",), [("NAMED",)], weight=2)
    _add(rules, ("ANYPLACE",), ["this", ("KIND",)])
    _add(rules, ("ANYPLACE",), ["the", ("KIND",)], weight=0)
    for aspect, phrases in lex.SUBJECTS.items():
        for number, names in zip(NUMBERS, phrases, strict=True):
            for name in names:
                _add(rules, ("SUBJECT", aspect, number), name, weight=2 if name == f"the {aspect}" else 1)
    for number in NUMBERS:
        _add(rules, ("SUBJECT", "food", number), [("ANYDISH", number)], weight=5)
        _add(rules, ("MEALOBJECT",), [("ANYDISH", number)], weight=3)
    _add(rules, ("MEALOBJECT",), "the food")
    for word in ("I", "we"):
        _add(rules, ("DINER",), word)


def _adjectives(rules: Rules) -> None:
    """Adjective phrases by aspect and claim value: weak 2, strong 3, degree words one more or one less."""
    for aspect in lex.ASPECTS:
        for strength in (1, 2, -1, -2):
            for word in lex.ADJECTIVES[aspect][strength]:
                _add(rules, ("ADJECTIVE", aspect, strength), word, weight=2)
            for word in lex.ADJECTIVES["any"][strength]:
                _add(rules, ("ADJECTIVE", aspect, strength), word)
            one, sign = ("ADJECTIVE", aspect, strength), 1 if strength > 0 else -1
            level, weak = abs(strength), abs(strength) == 1
            phrase = ("PHRASE", aspect, sign * (level + 1))
            _add(rules, phrase, [one], weight=3)
            for first, second in permutations((*lex.ADJECTIVES[aspect][strength], *lex.ADJECTIVES["any"][strength]), 2):
                _add(rules, phrase, f"{first} and {second}", weight=0.03)
            for word in lex.STRENGTHEN_WEAK:
                _add(rules, ("PHRASE", aspect, sign * (level + 2)), [word, one], weight=0.6 if weak else 0)
            for word in lex.STRENGTHEN_STRONG:
                _add(rules, ("PHRASE", aspect, sign * (level + 2)), [word, one], weight=0 if weak else 1)
            if weak:
                for word in lex.SOFTEN_GOOD if sign > 0 else lex.SOFTEN_BAD:
                    _add(rules, ("PHRASE", aspect, sign), [*word.split(), one])
                _add(rules, ("PHRASE", aspect, -sign), ["not", one], weight=0.5)


def _clauses(rules: Rules) -> None:
    """Claims made with an adjective: subject, verb, phrase, with agreement in number."""
    for value in VALUES:
        for aspect in lex.ASPECTS:
            for number, be in zip(NUMBERS, ("was", "were"), strict=True):
                parts = [("SUBJECT", aspect, number), be, ("PHRASE", aspect, value)]
                _add(rules, ("CLAUSE", aspect, value), parts, weight=2)
        for number in NUMBERS:
            _add(rules, ("CLAUSE", "food", value), [("ANYDISH", number), "tasted", ("PHRASE", "food", value)])


def _phrases(rules: Rules) -> None:
    """Claims made with a whole predicate, openers and verdicts."""
    for value, phrases in lex.EATER_PHRASES.items():
        for text in phrases:
            _add(rules, ("CLAUSE", "food", value), "{diner} " + text, diner=("DINER",), dish=("MEALOBJECT",))
    for aspect, by_value in lex.DINER_PHRASES.items():
        for value, phrases in by_value.items():
            for text in phrases:
                _add(rules, ("CLAUSE", aspect, value), "{diner} " + text, weight=2, diner=("DINER",))
    for value, phrases in lex.STAFF_PHRASES.items():
        for text in phrases:
            _add(rules, ("CLAUSE", "service", value), "{staff} " + text, weight=2, staff=("STAFF",))
    for name in lex.STAFF:
        _add(rules, ("STAFF",), name)
    for name, words in (("MEAL", lex.MEALS), ("TIME", lex.TIMES)):
        for word in words:
            _add(rules, (name,), word)
    slots = {"place": ("ANYPLACE",), "meal": ("MEAL",), "time": ("TIME",)}
    for text in lex.OPENERS:
        _add(rules, ("OPENER",), text, **slots)
    for value, phrases in lex.VERDICTS.items():
        for text in phrases:
            _add(rules, ("VERDICT", value), text, **slots)


def _asides(rules: Rules) -> None:
    for word in lex.PEOPLE:
        _add(rules, ("PERSON",), word)
    for word in lex.DEEDS:
        _add(rules, ("DEED",), word)
    for word in lex.THINGS:
        _add(rules, ("THING",), word)
    _add(rules, ("ASIDE",), [("PERSON",), ("DEED",), ("THING",)], weight=8)
    _add(rules, ("ASIDE",), [("PERSON",), ("DEED",), ("THING",), ("TIME",)], weight=4)
    for text in (*lex.WEATHER, *lex.TRAFFIC):
        _add(rules, ("ASIDE",), text)


def _sentences(rules: Rules) -> None:
    """Whole sentences: "and" joins claims of one sign, "but" claims of opposite signs; adverbs have a sign too."""
    for sign in (1, -1):
        for value in VALUES:
            if value * sign > 0:
                for aspect in lex.ASPECTS:
                    _add(rules, ("CLAIM", sign), [("CLAUSE", aspect, value)])
                _add(rules, ("OPINION", sign), [("VERDICT", value)])
        _add(rules, ("OPINION", sign), [("CLAIM", sign)], weight=8)
        _add(rules, ("OPINION", sign), [("CLAIM", sign), ",", "and", ("CLAIM", sign)])
        _add(rules, ("OPINION", sign), [("CLAIM", -sign), ",", "but", ("CLAIM", sign)])
        for adverb_sign in (0, sign):
            _add(rules, ("OPINION", sign), [("ADVERB", adverb_sign), ",", ("CLAIM", sign)])
        _add(rules, ("CORE",), [("OPINION", sign)])
    for sign, words in lex.ADVERBS.items():
        for word in words:
            _add(rules, ("ADVERB", sign), word)
    for kind in ("OPENER", "ASIDE"):
        _add(rules, ("CORE",), [(kind,)])
    _add(rules, SENTENCE, [("CORE",), "."], weight=9)
    _add(rules, SENTENCE, [("CORE",), "!"])


RULES: Rules = _build()
WORDS: tuple[str, ...] = tuple(
    sorted({part for rules in RULES.values() for rule in rules for part in rule.parts if isinstance(part, str)})
)
