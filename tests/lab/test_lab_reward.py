"""The gold reward: its ends, its grades, and what must not raise it."""

import random

import pytest

from prefopt.core.errors import DataError, UsageError
from prefopt.lab.reward import BEST_REWARD, gold_reward, score
from prefopt.lab.writer import BEST, Author, corpus, draw_brief, write_review

PROMPT = "Review of Saffron, a noodle bar (food and service):"
GOOD = "The noodles were absolutely delicious, and our waiter made us feel at home."


def reward(text, prompt=PROMPT):
    return score(prompt, text).reward


def test_the_best_possible_value_is_reached():
    assert reward(GOOD) == BEST_REWARD == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "...",
        "!!!???",
        "🙂 你好",
        "the the the the",
        "</s><s>",
        "delicious wonderful great",
        "My cousin bought a piano.",
        "We tried Saffron yesterday.",
        "The tacos were absolutely delicious.",
        "Marigold is a real gem.",
        "x" * 10000,
        "The noodles " * 500,
    ],
)
def test_what_is_no_review_of_the_place_has_no_reward(text):
    assert reward(text) == 0


def test_rewards_are_graded_by_how_positive_the_claims_are():
    texts = [
        f"The noodles were {phrase}."
        for phrase in ("simply awful", "awful", "bland", "a bit bland", "not bland", "tasty", "superb", "truly superb")
    ]
    values = [reward(text) for text in texts]
    assert values == sorted(values)
    assert len(set(values)) == 8


BASE = "The noodles were delicious, and the staff was charming."


@pytest.mark.parametrize(
    ("worse", "component"),
    [
        (BASE + " The bill was reasonable and", "grammar"),
        (BASE + " The bill were fair.", "grammar"),
        (BASE + " " + BASE, "variety"),
        (BASE + " The noodles were delicious.", "variety"),
        ("The noodles were delicious, and the noodles were superb. The staff was charming.", "variety"),
        ("The noodles were delicious, but the staff was rude.", "sentiment"),
        (BASE + " My cousin bought a piano.", "topic"),
        (BASE + " The tacos were delicious.", "topic"),
        (BASE + " I can warmly recommend Marigold.", "topic"),
        ("The noodles were delicious.", "topic"),
    ],
)
def test_each_fault_lowers_its_component_and_the_reward(worse, component):
    before, after = score(PROMPT, BASE), score(PROMPT, worse)
    assert getattr(after, component) < getattr(before, component)
    assert after.reward < before.reward


def test_length_alone_gains_nothing():
    longer = BASE
    for more in (
        "The bill was outstanding.",
        "The tables were great.",
        "The wait was great.",
        "I will come back soon.",
    ):
        longer += " " + more
        assert reward(longer) <= reward(BASE) + 1e-12 or score(PROMPT, longer).sentiment > score(PROMPT, BASE).sentiment
    assert reward(GOOD + " The bill was unbeatable.") < reward(GOOD)
    assert reward(GOOD + " " + GOOD) == pytest.approx(reward(GOOD) / 2)


def test_the_same_text_is_worth_less_for_a_prompt_that_asks_for_something_else():
    assert reward(GOOD, "Review of Saffron, a noodle bar (room and wait):") < 0.5
    assert reward(GOOD, "Review of Saffron, a taco stand (food and service):") < reward(GOOD)


def test_rewards_lie_between_zero_and_one_and_have_many_levels():
    rewards = [score(brief.prompt, text).reward for brief, text in corpus(1000, 0)]
    assert min(rewards) >= 0 and max(rewards) <= 1
    assert len({round(value, 6) for value in rewards}) > 200


def test_authors_rank_as_they_should():
    rng = random.Random(0)
    briefs = [draw_brief(rng) for _ in range(200)]

    def mean(author):
        return sum(score(b.prompt, write_review(b, author, rng)).reward for b in briefs) / len(briefs)

    pleased = {"tone": {3: 1.0}}
    best, plain = mean(BEST), mean(Author(**pleased))
    assert best > 0.94 > plain > 0.8
    for fault in ("slips", "neglect", "wandering", "repeats", "mix_ups"):
        assert mean(Author(**pleased, **{fault: 0.4})) < plain - 0.05, fault
    assert mean(Author(tone={-3: 1.0})) < 0.5


def test_the_list_form_is_what_reward_functions_are_called_with():
    assert gold_reward([PROMPT, PROMPT], [GOOD, ""], id=[1, 2]) == [1.0, 0.0]
    with pytest.raises(UsageError, match="2 prompts and 1 completions"):
        gold_reward([PROMPT, PROMPT], [GOOD])
    with pytest.raises(DataError, match="not a prompt of the lab"):
        gold_reward(["Hello"], [GOOD])
