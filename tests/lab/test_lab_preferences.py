"""Preference data: who wins how often, and that training and held-out prompts are apart."""

import math
import random

import pytest

from prefopt.core.errors import UsageError
from prefopt.lab.preferences import (
    Judge,
    demonstrations,
    make_pairs,
    prompt_rows,
    split_prompts,
    write_completions,
)
from prefopt.lab.reward import gold_reward

PROMPTS, HELD_OUT = split_prompts(1500, 200)


@pytest.fixture(scope="module")
def completions():
    return write_completions(PROMPTS[:1000], 2)


def accuracy(rows):
    """Share of pairs whose chosen completion has the higher gold reward, ties half."""
    prompts = [row["prompt"] for row in rows]
    chosen = gold_reward(prompts, [row["chosen"] for row in rows])
    rejected = gold_reward(prompts, [row["rejected"] for row in rows])
    return sum((w > x) + 0.5 * (w == x) for w, x in zip(chosen, rejected, strict=True)) / len(rows)


def test_prompts_are_distinct_and_held_out_ones_are_apart():
    assert len(set(PROMPTS)) == 1500 and len(set(HELD_OUT)) == 200
    assert not set(PROMPTS) & set(HELD_OUT)
    assert split_prompts(1500, 200) == (PROMPTS, HELD_OUT)
    assert split_prompts(1500, 200, seed=1)[0] != PROMPTS
    with pytest.raises(UsageError, match="the lab has 4000"):
        split_prompts(4000, 1)


def test_pairs_are_rows_of_plain_text(completions):
    rows = make_pairs(PROMPTS[:1000], completions)
    assert len(rows) > 930
    for row in rows:
        assert set(row) == {"prompt", "chosen", "rejected"}
        assert row["prompt"].endswith(":")
        assert row["chosen"][0] == row["rejected"][0] == " "
        assert row["chosen"] != row["rejected"]


def test_labels_are_as_noisy_as_asked_for(completions):
    prompts = PROMPTS[:1000]
    sure = accuracy(make_pairs(prompts, completions, Judge(temperature=0, flip=0)))
    flipped = accuracy(make_pairs(prompts, completions, Judge(temperature=0, flip=0.2)))
    blurred = accuracy(make_pairs(prompts, completions, Judge(temperature=0.3, flip=0)))
    coins = accuracy(make_pairs(prompts, completions, Judge(temperature=0, flip=0.5)))
    assert sure > 0.97  # the rest are ties
    assert flipped == pytest.approx(sure - 0.2, abs=0.04)
    assert 0.6 < blurred < 0.85
    assert coins == pytest.approx(0.5, abs=0.05)


def wins(judge, first, second, n=20000):
    rng = random.Random(0)
    return sum(judge.best_and_worst([first, second], rng) == (0, 1) for _ in range(n)) / n


def test_between_two_reviews_the_judge_is_bradley_terry():
    for gap in (0.0, 0.05, 0.1, 0.3):
        expected = 1 / (1 + math.exp(-gap / 0.1))
        assert wins(Judge(temperature=0.1, flip=0), 0.4 + gap, 0.4) == pytest.approx(expected, abs=0.012)
        assert wins(Judge(temperature=0.1, flip=0.2), 0.4 + gap, 0.4) == pytest.approx(0.2 + 0.6 * expected, abs=0.012)
    assert wins(Judge(temperature=0, flip=0), 0.3, 0.3) == pytest.approx(0.5, abs=0.012)


def test_of_several_reviews_the_best_and_the_worst_make_the_pair():
    rng = random.Random(0)
    assert Judge(temperature=0, flip=0).best_and_worst([0.3, 0.9, 0.1, 0.5], rng) == (1, 2)
    assert Judge(temperature=0, flip=0.5).best_and_worst([0.3, 0.9, 0.1, 0.5], rng) in [(1, 2), (2, 1)]


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"temperature": float("nan")}, {"flip": 0.6}, {"flip": -0.1}])
def test_impossible_judges_are_refused(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        Judge(**bad)


def test_completions_from_a_model_can_be_judged_and_equal_ones_are_left_out():
    good, bad = "The noodles were superb.", "The noodles were soggy."
    prompt = "Review of Saffron, a noodle bar (food and service):"
    judge = Judge(temperature=0, flip=0)
    assert make_pairs([prompt], [[bad, good]], judge) == [
        {"prompt": prompt, "chosen": " " + good, "rejected": " " + bad}
    ]
    assert make_pairs([prompt], [[good, good]], judge) == []
    assert make_pairs([prompt], [["", good, "  "]], judge) == []
    (row,) = make_pairs([prompt], [["The noodles were fresh.", bad, good, bad]], judge)
    assert (row["chosen"], row["rejected"]) == (" " + good, " " + bad)
    with pytest.raises(UsageError, match="1 prompts and 2 groups"):
        make_pairs([prompt], [[good], [bad]])


def test_data_depends_on_the_seed():
    first = make_pairs(PROMPTS[:50], write_completions(PROMPTS[:50], 2))
    assert first == make_pairs(PROMPTS[:50], write_completions(PROMPTS[:50], 2))
    assert first != make_pairs(PROMPTS[:50], write_completions(PROMPTS[:50], 2, seed=1))
    assert first != make_pairs(PROMPTS[:50], write_completions(PROMPTS[:50], 2), seed=1)


def test_other_rows():
    assert prompt_rows(["a:"]) == [{"prompt": "a:"}]
    assert demonstrations(["a:"], ["B."]) == [{"prompt": "a:", "completion": " B."}]
