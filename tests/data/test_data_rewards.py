"""What reward models learn from besides the order: margins of pairs, and ratings of single completions."""

import pytest
import torch
from skipped import sentences

from prefopt.core.batches import Completions, Pairs, Ranked
from prefopt.core.errors import DataError
from prefopt.data import RankedExample, prepare_dataset, to_examples

RATED = [
    {"prompt": "Hi", "completion": " dog", "rating": 4},
    {"prompt": "Hi there", "completion": " cat sky", "rating": "2.5"},
    {"prompt": "Hi", "completion": " blue", "rating": 1},
]
PAIR = {"prompt": "Hi", "chosen": " dog", "rejected": " cat"}


def u(text):
    return {"role": "user", "content": text}


def a(text):
    return {"role": "assistant", "content": text}


def test_a_margin_is_read_with_its_pair(make):
    rows = [{**PAIR, "margin": 1}, {**PAIR, "margin": "0.33"}, {**PAIR, "margin": None}, {**PAIR, "margin": 0}]
    data = prepare_dataset(rows, "pairs", make("bos"), labels=("rated_margin",), reader="reward_margin")
    assert sentences(data.audit.dropped) == {"without 'margin'": 1}
    pairs = Pairs.assemble(Completions.unscored(torch.ones(6, dtype=torch.long)), data.collate(data.examples).labels)
    torch.testing.assert_close(pairs.rated_margin, torch.tensor([1.0, 0.33, 0.0]))


def test_the_column_of_a_missing_margin_is_named(make):
    with pytest.raises(DataError, match=r"reward_margin needs 'margin' \(by how much chosen is better\), which no row"):
        prepare_dataset([PAIR], "pairs", make("bos"), labels=("rated_margin",), reader="reward_margin")


def test_a_margin_that_some_rows_have_is_not_used_by_others(make):
    data = prepare_dataset([{**PAIR, "margin": 1}, PAIR], "pairs", make("bos"))
    assert "rated_margin" not in data.collate(data.examples).labels
    assert "'rated_margin' is known for 1 of 2 rows only, and is not used" in data.notes


@pytest.mark.parametrize("column", ["rating", "score", "reward"])
def test_ratings_of_single_completions_are_rankings_of_one_where_ratings_are_wanted(column):
    row = {"prompt": "Q", "completion": "A", column: 3}
    reading = to_examples([row], kind="ranked")
    assert reading.format.name == "prompt-completion-rating"
    assert reading.examples == [RankedExample("Q", ("A",), (3.0,))]
    # Everyone else sees what there is to imitate, with the rating among the columns.
    others = to_examples([row], kind="demonstrations")
    assert others.format.name == "prompt-completion"
    assert others.examples[0].columns == {column: 3}


@pytest.mark.parametrize(
    ("row", "name", "prompt"),
    [
        ({"messages": [u("Q"), a("A")], "score": 3}, "messages-rating", [u("Q")]),
        ({"instruction": "Q", "output": "A", "rating": 3}, "alpaca-rating", [u("Q")]),
        ({"system": "Be kind.", "prompt": [u("Q")], "response": [a("A")], "reward": 3}, "prompt-completion-rating",
         [{"role": "system", "content": "Be kind."}, u("Q")]),
    ],
)  # fmt: skip
def test_ratings_in_the_layouts_of_demonstrations(row, name, prompt):
    reading = to_examples([row], kind="ranked")
    assert reading.format.name == name
    assert reading.examples == [RankedExample(prompt, ([a("A")],), (3.0,))]


def test_ratings_of_single_completions_as_a_batch(make):
    tokenizer = make("bos")
    rows = [*RATED, {**RATED[0], "rating": None}, {**RATED[0], "completion": ""}]
    data = prepare_dataset(rows, "ranked", tokenizer, labels=("scores",), reader="reward_regression", singles=True)
    assert sentences(data.audit.dropped) == {
        "without a rating that is a number": 1,
        "whose only completion is empty": 1,
    }
    batch = data.collate(data.examples)
    ranked = Ranked.assemble(Completions.unscored(torch.ones(3, dtype=torch.long)), batch.labels)
    assert ranked.scores.tolist() == [4.0, 2.5, 1.0]
    assert ranked.group.tolist() == [0, 1, 2]
    assert ranked.counts()["group"] == ranked.counts()["completion"] == 3


def test_a_single_completion_is_dropped_by_those_who_compare(make):
    groups = [{"prompt": "Hi", "completions": [" dog", " cat"], "scores": [1, 2]}]
    with pytest.raises(DataError, match=r"reward_kwise compares completions.*every row holds one.*reward_regression"):
        prepare_dataset(RATED, "ranked", make("bos"), reader="reward_kwise")
    # A ranking that lost all but one of its completions has never been one of a single completion.
    one_left = {"prompt": "Hi", "completions": [" sky", ""], "scores": [1, 2]}
    data = prepare_dataset([*groups, one_left], "ranked", make("bos"), singles=True)
    assert sentences(data.audit.dropped) == {"with fewer than two different completions": 1}
    assert len(data) == 1
