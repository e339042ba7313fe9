"""Why rows are left out: reasons as data, with the rows that they are about."""

import string

import pytest
from skipped import sentences

from prefopt.core.errors import DataError
from prefopt.data import prepare_dataset
from prefopt.data.audit import Audit
from prefopt.data.reasons import CORRECT, Cause, Reason, SkipRow, tally

DETAILS = {"token": "</s>", "column": "x", "columns": "'x'", "limit": 9, "low": 0, "high": 1, "role": "'y'", "row": 3, 
           "error": "E", "why": "empty"}  # fmt: skip


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_words_for_its_details(reason: Reason) -> None:
    names = {name.split("!")[0] for _, name, _, _ in string.Formatter().parse(reason.text) if name}
    cause = SkipRow(reason, **{name: DETAILS[name] for name in names}).cause
    assert "{" not in str(cause)
    assert reason.remedy and not reason.remedy.endswith(".")
    # What a limit decides is remedied by the limit.
    assert reason.length == ("data.max_length" in reason.remedy)
    own = (Reason.TEMPLATE_REWRITES, Reason.NOT_JSON, Reason.PRERENDERED)
    assert (reason.remedy != CORRECT) == (reason.length or reason in own)


def test_details_tell_causes_apart() -> None:
    skipped = [(0, Cause.of(Reason.MISSING, column="a")), (2, Cause.of(Reason.MISSING, column="b")),
               (1, Cause.of(Reason.MISSING, column="b"))]  # fmt: skip
    assert tally(skipped) == [(Cause.of(Reason.MISSING, column="b"), 2), (Cause.of(Reason.MISSING, column="a"), 1)]


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (Reason.LONG_PROMPT, "data.truncation='keep-end'"),
        (Reason.LONG_ROW, "data.truncation='keep-start'"),
        (Reason.LONG_COMPLETION, "data.truncation='keep-start'"),
        (Reason.EMPTY_PROMPT, "Correct these rows"),
    ],
)
def test_the_remedy_is_that_of_most_rows(reason: Reason, words: str) -> None:
    main, other = Cause.of(reason, limit=8), Cause(Reason.EQUAL_SIDES)
    dropped = [(0, other), (1, main), (2, main)]
    with pytest.raises(DataError, match=words):
        Audit("pairs", 4, 1, 0, dropped, 8).check(0.1)


def test_rows_keep_their_numbers_through_conversion_and_cuts(make) -> None:
    """Each station drops a row: layout, tokens, and labels."""
    good = {"prompt": "Hi", "chosen": " dog", "rejected": " cat", "preference": 0.75}
    rows = [good, {**good, "chosen": None}, {**good, "preference": None}, good, {**good, "rejected": " dog"},
            {**good, "preference": 1.5}, good]  # fmt: skip
    data = prepare_dataset(rows, "pairs", make("bos"), {"max_dropped": 1.0}, labels=("preference",), reader="sppo")
    assert [example.row for example in data.examples] == [0, 3, 6]
    assert [example.id for example in data.examples] == [0, 1, 2]
    assert [(row, cause.reason) for row, cause in data.audit.dropped] == [
        (1, Reason.MISSING),
        (2, Reason.LACKS_LABELS),
        (4, Reason.EQUAL_SIDES),
        (5, Reason.OUT_OF_BOUNDS),
    ]
    assert "whose 'preference' is not between 0 and 1" in sentences(data.audit.dropped)
    # A pair becomes two labelled rows, and a ranking three pairs; all know the row that they come from.
    labelled = prepare_dataset([good, {**good, "rejected": " "}], "labelled", make("bos"))
    assert [example.row for example in labelled.examples] == [0, 0, 1]
    assert labelled.audit.dropped == [(1, Cause(Reason.EMPTY_COMPLETION))]
    ranking = {"prompt": "Hi", "completions": [" dog", " cat", " sky"], "scores": [1, 2, 3]}
    pairs = prepare_dataset([good, ranking][1:] * 2, "pairs", make("bos"))
    assert [example.row for example in pairs.examples] == [0, 0, 0, 1, 1, 1]


def test_completions_that_leave_their_group_know_its_row(make) -> None:
    rows = [{"prompt": "Hi", "completions": [" a", " b"], "scores": [1, 2]},
            {"prompt": "Hi", "completions": [" a", "", " b", " a"], "scores": [1, 2, 3, 4]}]  # fmt: skip
    data = prepare_dataset(rows, "ranked", make("bos"))
    assert data.audit.left == [(1, Cause(Reason.EMPTY)), (1, Cause(Reason.REPEATED))]
