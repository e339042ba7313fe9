"""The grammar, its recogniser, and the authors who write with it."""

import random
import statistics

import pytest

from prefopt.core.errors import DataError
from prefopt.lab import lexicon as lex
from prefopt.lab.grammar import RULES, SENTENCE, VALUES, about, expand, write
from prefopt.lab.parse import parse
from prefopt.lab.writer import BEST, EXAMPLE, Author, Brief, corpus, draw_brief, write_review


def one(text):
    sentences = parse(text)
    assert len(sentences) == 1, text
    return sentences[0]


def test_whatever_the_grammar_writes_is_recognised_as_one_sentence():
    rng = random.Random(0)
    for _ in range(2000):
        text = write(expand([SENTENCE], rng))
        assert one(text).grammatical, text


@pytest.mark.parametrize("aspect", lex.ASPECTS)
@pytest.mark.parametrize("value", VALUES)
def test_a_claim_is_read_back_with_its_aspect_and_value(aspect, value):
    rng = random.Random(value)
    for _ in range(60):
        text = write([*expand([("CLAUSE", aspect, value)], rng), "."])
        assert one(text).claims == ((aspect, value),), text


@pytest.mark.parametrize("value", VALUES)
def test_a_verdict_is_a_claim_about_the_whole_visit(value):
    text = write([*expand([("VERDICT", value)], random.Random(1), about("bakery", "Saffron")), "!"])
    assert one(text).claims == (("overall", value),)


def test_bindings_keep_a_text_on_one_place():
    rng = random.Random(2)
    bound = about("bakery", "Saffron")
    for _ in range(300):
        sentence = one(write(expand([SENTENCE], rng, bound)))
        assert set(sentence.places) <= {"Saffron"}
        assert set((*sentence.cuisines, *sentence.dishes)) <= {"bakery"}


@pytest.mark.parametrize(
    "text",
    [
        "The noodles was tasty.",
        "The noodles were.",
        "Were the noodles tasty.",
        "The the noodles were tasty.",
        "the noodles were tasty.",
        "The noodles were tasty",
        "The noodles were tasty and tasty.",
        "The noodles were tasty, but the service was friendly.",
        "The noodles were rude.",
        "Luckily, the noodles were bland.",
        "tasty.",
        ".",
    ],
)
def test_what_breaks_the_grammar_is_not_recognised(text):
    assert not one(text).grammatical


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("The noodles were tasty.", (("food", 2),)),
        ("The noodles were absolutely delicious!", (("food", 4),)),
        ("The service was a bit slow, but the noodles were not bland.", (("service", -1), ("food", 1))),
        ("Sadly, I felt robbed.", (("price", -4),)),
        ("My cousin bought a piano.", ()),
    ],
)
def test_sentences_written_by_hand(text, claims):
    sentence = one(text)
    assert sentence.grammatical
    assert sentence.claims == claims


def test_text_splits_at_final_marks_and_what_is_left_over_is_ungrammatical():
    sentences = parse("The bill was fair. We tried Saffron yesterday! The room was")
    assert [sentence.grammatical for sentence in sentences] == [True, True, False]


@pytest.mark.parametrize("text", ["", "   \n", "....", "ßø 你好 🙂", "a " * 500, "(" * 300, "The " * 400 + "."])
def test_any_text_can_be_parsed(text):
    assert not any(sentence.grammatical for sentence in parse(text))


def test_no_rule_is_empty_left_recursive_or_dangling():
    def starts(symbol, seen):
        assert symbol not in seen, f"{symbol} is left-recursive"
        for rule in RULES[symbol]:
            assert rule.parts
            if not isinstance(rule.parts[0], str):
                starts(rule.parts[0], seen | {symbol})

    for symbol, rules in RULES.items():
        starts(symbol, frozenset())
        assert all(isinstance(part, str) or part in RULES for rule in rules for part in rule.parts)


def test_no_dish_belongs_to_two_cuisines():
    dishes = [dish for groups in lex.CUISINES.values() for group in groups for dish in group]
    assert len(dishes) == len(set(dishes))


def test_a_prompt_is_read_back():
    rng = random.Random(3)
    for _ in range(100):
        brief = draw_brief(rng)
        assert Brief.read(brief.prompt) == brief
    assert EXAMPLE.prompt == "Review of Saffron, a noodle bar (service and price):"


@pytest.mark.parametrize(
    "prompt",
    ["", "Hello", "Review of Atlantis, a noodle bar (food and price):", EXAMPLE.prompt.replace("price", "wine")],
)
def test_another_prompt_is_refused_in_one_line(prompt):
    with pytest.raises(DataError, match="not a prompt of the lab") as error:
        Brief.read(prompt)
    assert "\n" not in str(error.value)


def test_the_corpus_depends_on_its_seed_alone():
    assert list(corpus(20, 0)) == list(corpus(20, 0)) == list(corpus(40, 0))[:20]
    assert list(corpus(20, 0)) != list(corpus(20, 1))


def share_of_grammatical(author, seed=0):
    rng = random.Random(seed)
    sentences = [s for _ in range(200) for s in parse(write_review(draw_brief(rng), author, rng))]
    return statistics.fmean(sentence.grammatical for sentence in sentences)


def test_slips_are_the_share_of_ungrammatical_sentences():
    assert share_of_grammatical(BEST) == 1
    assert share_of_grammatical(Author(tone={2: 1.0}, slips=1.0)) == 0
    assert share_of_grammatical(Author(tone={2: 1.0}, slips=0.3)) == pytest.approx(0.7, abs=0.06)


def test_authors_wander_and_repeat_themselves_as_told():
    rng = random.Random(4)
    brief = draw_brief(rng)
    wandering = parse(write_review(brief, Author(tone={2: 1.0}, wandering=1.0), rng))
    assert sum(sentence.aside for sentence in wandering) == len(wandering) / 2
    repeated = write_review(brief, Author(tone={2: 1.0}, repeats=1.0), rng).replace("!", ".").split(". ")
    assert repeated[0] == repeated[1]
