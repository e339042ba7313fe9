"""What a judge's words mean."""

import pytest

from prefopt.rewards.verdict import read_verdict

A, B, TIE = 1.0, 0.0, 0.5

SAID = {
    "A": A,
    "b": B,
    " B.\n": B,
    "**A**": A,
    "(B)": B,
    '"A"': A,
    "tie": TIE,
    "Tie.": TIE,
    "A tie": TIE,
    "It's a tie.": TIE,
    "Response B": B,
    "Answer: A": A,
    "Answer: **B**": B,
    "Verdict = A": A,
    "[[A]]": A,
    "Both are fine, but [[B]]": B,
    "[[C]]": TIE,
    "A. It is more helpful than B.": A,
    "B\n\nThe first response is wrong.": B,
    "A is more polite, B is right.\n\nB": B,
    "The better response is B.": B,
    "The better response is Response A, since B is rude.": A,
    "I prefer B over A.": B,
    "I first thought that A is better. On reflection, the better one is B.": B,
    "Response A is clearly better than Response B": A,
    "B is the winner": B,
    "The winner is a tie.": TIE,
    "Both responses are equally good": TIE,
    "Final answer: tie": TIE,
    "<think>A is better. The answer is A.</think>\n\nB": B,
    "<think>A is better. The answer is A": None,
    "": None,
    "A nice comparison of two texts": None,
    "I cannot say.": None,
    "The better answer is not A.": None,
    "A and B have different strengths.": None,
    "It is not a tie.": None,
    "because": None,
}


@pytest.mark.parametrize("answer", SAID)
def test_what_an_answer_says(answer: str) -> None:
    assert read_verdict(answer) == SAID[answer]
