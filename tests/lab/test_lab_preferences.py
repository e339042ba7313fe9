"""Preference data: who wins how often, and that training and held-out prompts are apart."""

import pytest

from prefopt.errors import UsageError
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


def test_pairs_are_rows_of_plain_text():
    rows = make_pairs(PROMPTS, write_completions(PROMPTS, 2))
    assert len(rows) > 1400
    for row in rows:
        assert set(row) == {"prompt", "chosen", "rejected"}
        assert row["prompt"].endswith(":")
        assert row["chosen"][0] == row["rejected"][0] == " "
        assert row["chosen"] != row["rejected"]


def test_labels_are_as_noisy_as_asked_for():
    completions = write_completions(PROMPTS, 2)
    sure = accuracy(make_pairs(PROMPTS, completions, Judge(temperature=0, flip=0)))
    flipped = accuracy(make_pairs(PROMPTS, completions, Judge(temperature=0, flip=0.2)))
    blurred = accuracy(make_pairs(PROMPTS, completions, Judge(temperature=0.3, flip=0)))
    coins = accuracy(make_pairs(PROMPTS, completions, Judge(temperature=0, flip=0.5)))
    assert sure > 0.97  # the rest are ties
    assert flipped == pytest.approx(sure - 0.2, abs=0.04)
    assert 0.6 < blurred < 0.85
    assert coins == pytest.approx(0.5, abs=0.05)


def test_the_judge_is_bradley_terry():
    judge = Judge(temperature=0.1, flip=0)
    assert judge.probability(0.5, 0.4) == pytest.approx(0.7310585786300049)
    assert judge.probability(0.4, 0.5) == pytest.approx(1 - 0.7310585786300049)
    assert judge.probability(1.0, 0.0) == pytest.approx(1, abs=1e-3)
    assert Judge(temperature=0.1, flip=0.05).probability(1.0, 0.0) == pytest.approx(0.95, abs=1e-4)
    assert Judge(temperature=0, flip=0.1).probability(0.3, 0.3) == pytest.approx(0.5)


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
    assert len(make_pairs([prompt], [[bad, good, "Five stars from me.", "One star from me.", bad]], judge)) == 2
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
