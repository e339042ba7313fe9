"""Groups of judged completions: conversions, tokens, audit, collation; and the labels that objectives need."""

import pytest
import torch
from skipped import sentences

from prefopt.core.batches import Completions, Pairs, Ranked
from prefopt.core.errors import DataError
from prefopt.data import (
    DemonstrationExample,
    LabelledExample,
    PairExample,
    PromptExample,
    RankedExample,
    convert,
    prepare_dataset,
)

THREE = RankedExample("Q", ("mid", "low", "top"), scores=(2.0, 1.0, 5.0), columns={"x": 1})
TIED = RankedExample("R", ("mid", "low", "tied"), ranks=(1.0, 2.0, 1.0))
ROWS = [
    {"prompt": "Hi", "completions": [" dog", " cat", " sky", " night"], "scores": [0.5, 2, 2, -1]},
    {"prompt": "Hi there", "completions": [" blue", " black"], "scores": [1, 3]},
]


def test_a_ranking_becomes_every_pair_that_it_states():
    rows, note = convert([THREE, TIED], "pairs")

    def scores(chosen, rejected):
        return {"labels": {"chosen_score": chosen, "rejected_score": rejected}, "columns": {"x": 1}}

    assert rows == [
        PairExample("Q", "top", "mid", **scores(5.0, 2.0)),
        PairExample("Q", "top", "low", **scores(5.0, 1.0)),
        PairExample("Q", "mid", "low", **scores(2.0, 1.0)),
        PairExample("R", "mid", "low"),
        PairExample("R", "tied", "low"),
    ]
    assert note == "2 rankings read as 5 pairs: every two completions that are not tied"


def test_a_ranking_becomes_its_widest_pair_where_that_is_asked_for():
    rows, note = convert([THREE, TIED], "pairs", "best-worst")
    assert [(row.chosen, row.rejected) for row in rows] == [("top", "low"), ("mid", "low")]
    assert note == "2 rankings read as 2 pairs: the best against the worst"
    equals = RankedExample("Q", ("a", "b"), scores=(1.0, 1.0))
    assert convert([THREE, equals], "pairs", "best-worst")[1].endswith("(1 rankings state no preference)")
    with pytest.raises(DataError, match="all their completions are tied"):
        convert([equals], "pairs")


def test_pairs_become_rankings_of_two_and_back():
    scores = {"chosen_score": 1.0, "rejected_score": 2.0}
    pairs = [PairExample("Q", "good", "bad", labels=scores), PairExample("R", "x", "y")]
    rows, note = convert(pairs, "ranked")
    # The choice decides, also against the scores.
    assert rows == [
        RankedExample("Q", ("good", "bad"), scores=(1.0, 2.0), ranks=(1, 2)),
        RankedExample("R", ("x", "y"), ranks=(1, 2)),
    ]
    assert note == "2 pairs read as rankings of two"
    assert convert(rows, "pairs")[0] == pairs


def test_a_ranking_becomes_labelled_rows_only_where_nothing_is_lost():
    rows, _ = convert([RankedExample("Q", ("bad", "good"), scores=(0.0, 1.0))], "labelled")
    assert rows == [LabelledExample("Q", "good", True), LabelledExample("Q", "bad", False)]
    for examples in ([THREE], [RankedExample("Q", ("a", "b"), scores=(1.0, 1.0))]):
        with pytest.raises(DataError, match=r"not which one is desirable.*data.pairs='best-worst'"):
            convert(examples, "labelled")
    rows, note = convert([THREE], "labelled", "best-worst")
    assert [(row.completion, row.desirable) for row in rows] == [("top", True), ("low", False)]
    assert "best against the worst; 1 pairs read as 2 labelled rows" in note


def test_a_ranking_becomes_its_best_completion_or_its_prompt():
    assert convert([THREE, TIED], "demonstrations")[0] == [
        DemonstrationExample("Q", "top", columns={"x": 1}),
        DemonstrationExample("R", "mid"),
    ]
    assert convert([THREE], "prompts")[0] == [PromptExample("Q", columns={"x": 1, "completions": THREE.completions})]
    with pytest.raises(DataError, match="demonstrations cannot be read as ranked: a ranking needs several"):
        convert([DemonstrationExample("Q", "x")], "ranked")


def decoded(tokenizer, example):
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in example.completions]


def test_groups_of_unequal_size_are_laid_out_as_ranked_expects(make):
    tokenizer = make("bos")
    data = prepare_dataset(ROWS, "ranked", tokenizer)
    assert len(data) == 2
    batch = data.collate([data[0], data[1]])
    texts = [
        tokenizer.decode(row[keep.bool()], skip_special_tokens=True)
        for row, keep in zip(batch.rows.input_ids, batch.rows.attention_mask, strict=True)
    ]
    assert texts == ["Hi dog", "Hi cat", "Hi sky", "Hi night", "Hi there blue", "Hi there black"]
    labels = batch.labels
    assert labels["group"].tolist() == [0, 0, 0, 0, 1, 1]
    assert labels["ranks"].tolist() == [3, 1, 1, 4, 2, 1]
    assert labels["scores"].tolist() == [0.5, 2.0, 2.0, -1.0, 1.0, 3.0]
    assert labels["ids"].tolist() == [0, 1]
    ranked = Ranked.assemble(Completions.unscored(batch.rows.lengths), labels)
    assert ranked.best.tolist() == [False, True, False, False, False, True]
    assert ranked.counts()["group"] == 2


def test_pairs_from_rows_are_the_pairs_of_the_container(make):
    """Converting the data and viewing the batch state the same preferences with the same scores."""
    data = prepare_dataset(ROWS, "ranked", make("bos"))
    labels = data.collate([data[0], data[1]]).labels
    view = Ranked.assemble(Completions.unscored(torch.arange(1, 7)), labels).as_pairs()
    pairs = prepare_dataset(ROWS, "pairs", make("bos"))
    assert len(pairs) == len(view.ids) == 6
    labels = [(each.labels["chosen_score"], each.labels["rejected_score"]) for each in pairs.examples]
    assert sorted(labels) == sorted(zip(view.chosen_score.tolist(), view.rejected_score.tolist(), strict=True))


def test_a_completion_that_cannot_be_used_leaves_its_group(make):
    rows = [
        {"prompt": "Hi", "completions": [" x", "", " y", " x", " z"], "scores": [1, 2, None, 4, 5]},
        {"prompt": "Hi", "completions": [" x", " x"], "scores": [1, 2]},
        {"prompt": "Hi", "completions": [" x", " "], "scores": [1, 2]},
        {"prompt": "Hi", "completions": [" x", " y"], "scores": [None, 2]},
        {"prompt": "Hi", "completions": [" x", " y"], "ranks": [1, 1]},
        {"prompt": "Hi", "completions": [" x", " y"], "scores": [1, 1]},
    ]
    data = prepare_dataset(rows, "ranked", make("bos"), {"max_dropped": 1.0})
    assert [decoded(make("bos"), each) for each in data.examples] == [[" x", " z"], [" x", " y"]]
    assert [each.labels for each in data.examples] == [
        {"ranks": (2, 1), "scores": (1.0, 5.0)},
        {"ranks": (1, 1), "scores": (1.0, 1.0)},
    ]
    lines = data.audit.lines()
    assert lines[0] == (
        "ranked: 6 read, 2 kept, 4 dropped: 2 with fewer than two different completions, "
        "1 with fewer than two rated answers, 1 ties"
    )
    assert lines[1] == "completions that left their group: 1 empty, 1 without a judgement, 1 equal to another one"


@pytest.mark.parametrize(
    ("truncation", "kept", "prompt"),
    [
        ("drop", [[" x", " y"]], "Hi there dog cat"),
        ("keep-start", [[" x", " y", " sky blue sky blue"], [" sky blue sky blue", " x"]], "Hi there dog cat"),
        ("keep-end", [[" x", " y", " sky blue sky blue sky"], [" sky blue sky blue sky", " x"]], "cat"),
    ],
)
def test_truncation_of_groups(make, truncation, kept, prompt):
    tokenizer = make("bos")
    long = " sky blue sky blue sky"
    rows = [
        {"prompt": "Hi there dog cat", "completions": [" x", " y", long], "scores": [1, 2, 3]},
        {"prompt": "Hi there dog cat", "completions": [long, " x"], "scores": [1, 2]},
    ]
    whole = prepare_dataset(rows, "ranked", tokenizer)[0]
    settings = {"truncation": truncation, "max_length": len(whole.prompt) + len(whole.completions[2]) - 3}
    data = prepare_dataset(rows, "ranked", tokenizer, settings)
    texts = [decoded(tokenizer, each) for each in data.examples]
    if truncation == "keep-start":
        assert [[text[:14] for text in group] for group in texts] == [[text[:14] for text in group] for group in kept]
    else:
        assert texts == kept
    for each in data.examples:
        assert all(len(each.prompt) + len(ids) <= data.max_length for ids in each.completions)
        assert prompt in tokenizer.decode(each.prompt)
    if truncation == "drop":
        assert sentences(data.audit.dropped) == {f"longer than {data.max_length} tokens": 1}
        assert sentences(data.audit.left) == {f"longer than {data.max_length} tokens": 1}


def test_completions_that_are_equal_after_the_cut_leave(make):
    tokenizer = make("bos")
    rows = [{"prompt": "Hi", "completions": [" dog dog cat", " dog dog sky", " blue"], "scores": [1, 2, 3]}]
    whole = prepare_dataset(rows, "ranked", tokenizer)[0]
    limit = len(whole.prompt) + len(tokenizer(" dog dog", add_special_tokens=False).input_ids)
    data = prepare_dataset(rows, "ranked", tokenizer, {"max_length": limit, "truncation": "keep-start"})
    assert decoded(tokenizer, data[0])[0] == " dog dog"
    assert len(data[0].completions) == 2
    assert data[0].labels["scores"] == (1.0, 3.0)
    assert sentences(data.audit.left) == {"identical to another one after the cut": 1}


def test_rows_without_a_label_that_is_needed_are_dropped_and_counted(make):
    scored = {"prompt": "Hi", "chosen": " dog", "rejected": " cat", "score_chosen": 2, "score_rejected": 1}
    rows = [scored, {**scored, "score_chosen": None}, scored]
    data = prepare_dataset(rows, "pairs", make("bos"), labels=("chosen_score", "rejected_score"))
    assert sentences(data.audit.dropped) == {"without 'score_chosen'": 1}
    labels = data.collate([data[0], data[1]]).labels
    assert labels["ids"].tolist() == [0, 1]
    pairs = Pairs.assemble(Completions.unscored(torch.ones(4, dtype=torch.long)), labels)
    assert (pairs.chosen_score.tolist(), pairs.rejected_score.tolist()) == ([2.0, 2.0], [1.0, 1.0])


@pytest.mark.parametrize(
    ("rows", "kind", "labels", "words"),
    [
        ([{"prompt": "Q", "chosen": "x", "rejected": "y", "score_chosen": 1}], "pairs",
         ("chosen_score", "rejected_score"), "rebel needs 'score_rejected' \\(numbers, higher is better\\), which no"),
        ([{"prompt": "Q", "chosen": "x", "rejected": "y"}], "pairs", ("preference",),
         "'preference' \\(P\\(chosen is better\\), 0 to 1\\).*add this column"),
        ([{"prompt": "Q", "chosen": "x", "rejected": "y"}], "ranked", ("scores",),
         "'score_chosen' and 'score_rejected'.*add these columns"),
        ([{"prompt": "Q", "completions": ["x", "y"], "ranks": [1, 2]}], "ranked", ("scores",),
         "'scores' \\(a list with one number for each completion\\)"),
        ([{"prompt": "Q", "completions": ["x", "y"], "ranks": [1, 2]}], "pairs", ("chosen_score", "rejected_score"),
         "rebel needs 'scores'"),
    ],
)  # fmt: skip
def test_a_label_that_no_row_has_is_named_with_its_column(make, rows, kind, labels, words):
    with pytest.raises(DataError, match=f"the given list: .*{words}") as caught:
        prepare_dataset(rows, kind, make("bos"), labels=labels, reader="rebel")
    assert "\n" not in str(caught.value)


def test_a_prepared_dataset_is_checked_too(make):
    data = prepare_dataset(ROWS, "ranked", make("bos"))
    data.check("ranked", ("scores",), "exo")
    with pytest.raises(DataError, match="dpo takes pairs, and this tokenized dataset holds ranked"):
        data.check("pairs", (), "dpo")
    ranks = [{"prompt": "Q", "completions": [" x", " y"], "ranks": [1, 2]}]
    with pytest.raises(DataError, match="exo needs 'scores'"):
        prepare_dataset(ranks, "ranked", make("bos")).check("ranked", ("scores",), "exo")
