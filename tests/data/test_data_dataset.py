"""Settings, conversions, audit, the whole way, and collation."""

import numpy as np
import pytest
import torch

from prefopt.core.batches import Labelled, Pairs
from prefopt.core.errors import DataError, UsageError
from prefopt.data import (
    Audit,
    DataSettings,
    DemonstrationExample,
    LabelledExample,
    PairExample,
    PromptExample,
    collate,
    convert,
    prepare_dataset,
)
from prefopt.data.dataset import draw_partners
from prefopt.data.reasons import Cause, Reason


def u(text):
    return {"role": "user", "content": text}


def a(text):
    return {"role": "assistant", "content": text}


PAIRS = [{"prompt": f"Hi {n}", "chosen": " there dog" * (n + 1), "rejected": " no"} for n in range(4)]
LABELLED = [{"prompt": f"Hi {n // 2}", "completion": f" you {n}", "label": n % 2} for n in range(10)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_lenght": 5}, "no setting 'max_lenght'. Did you mean 'max_length'"),
        ({"max_length": 1}, "max_length=1 is out of range: it must be >= 2"),
        ({"max_length": True}, "max_length=True must be"),
        ({"truncation": "keep-strat"}, "Did you mean 'keep-start'"),
        ({"format": "hh_rlhf"}, "Did you mean 'hh-rlhf'"),
        ({"pairs": "best_worst"}, "Did you mean 'best-worst'"),
        ({"max_dropped": 1.5}, "max_dropped=1.5"),
        ({"columns": ["a"]}, "columns"),
        ({"columns": {"a": 1}}, "must map names of columns"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"split": ""}, "split=''"),
        (3, "must be a mapping of settings"),
    ],
)
def test_settings_are_checked_when_they_are_made(settings, words):
    with pytest.raises(UsageError) as caught:
        DataSettings.of(settings)
    assert words in str(caught.value)


def test_conversions():
    pair = PairExample([u("Q")], [a("good")], [a("bad")], columns={"x": 1})
    rows, note = convert([pair], "labelled")
    assert [(row.completion, row.desirable) for row in rows] == [([a("good")], True), ([a("bad")], False)]
    assert note == "1 pairs read as 2 labelled rows: chosen desirable, rejected undesirable"
    assert convert([pair], "demonstrations")[0] == [DemonstrationExample([u("Q")], [a("good")], columns={"x": 1})]
    prompts, note = convert([pair, pair], "prompts")
    assert [prompt.prompt for prompt in prompts] == [[u("Q")]]
    assert prompts[0].columns == {"x": 1, "chosen": [a("good")], "rejected": [a("bad")]}
    assert note == "2 pairs read as 1 prompts, 1 repeated"
    assert convert([pair], "pairs") == ([pair], "")
    talk = DemonstrationExample([u("1")], [a("2"), u("3"), a("4")])
    assert convert([talk], "prompts")[0][0].prompt == [u("1"), a("2"), u("3")]


def test_conversions_that_would_invent_labels_are_refused():
    good, bad = LabelledExample("Q", "x", True), LabelledExample("Q", "y", False)
    assert convert([good], "demonstrations")[0] == [DemonstrationExample("Q", "x")]
    for examples, kind, words in [
        ([good, bad], "demonstrations", "1 of 2 are not"),
        ([good], "pairs", "a pair needs two completions"),
        ([DemonstrationExample("Q", "x")], "labelled", "needs a label"),
        ([PromptExample("Q")], "demonstrations", "no completions"),
    ]:
        with pytest.raises(DataError, match=words):
            convert(examples, kind)
    with pytest.raises(UsageError, match="Did you mean 'pairs'"):
        convert([good], "pair")


def test_audit_lines():
    long, equal = Cause.of(Reason.LONG_PROMPT, limit=512), Cause(Reason.EQUAL_AFTER_CUT)
    dropped = [(row, equal if row in (0, 7, 8, 20) else long) for row in range(49)]
    audit = Audit("pairs", 300, 251, 198, dropped, 512, [(10, 20), (30, 600)])
    assert audit.lines() == [
        "pairs: 300 read, 251 kept (198 cut to 512 tokens), 49 dropped: 45 with a prompt of 512 tokens or more, "
        "4 identical after the cut",
        "tokens before any cut: prompt 30 (median), 30 (90 %), 30 (longest); prompt with completion 600 (median), "
        "600 (90 %), 600 (longest); limit 512",
    ]
    audit.check(0.5)
    with pytest.raises(DataError, match=r"16% of the rows.*max_dropped=0.1.*keep-end.*max_dropped=0.17"):
        audit.check(0.1)
    audit.check(0.17)
    with pytest.raises(DataError, match="nothing is left"):
        Audit("pairs", 1, 0, 0, [(0, Cause(Reason.TIE))], 512).check(1.0)
    Audit("pairs", 10, 1, 0, [(row, Cause(Reason.TIE)) for row in range(9)], 512).check(0.0)


def test_the_whole_way(make):
    data = prepare_dataset([*PAIRS, {"prompt": "Q", "chosen": "x", "rejected": "x"}], "pairs", make("bos"))
    assert (data.kind, len(data), data.max_length) == ("pairs", 4, 2048)
    assert data.audit.lines()[0] == "pairs: 5 read, 4 kept, 1 dropped: 1 with chosen equal to rejected"
    assert data.notes == ["the given list read as prompt-pairs"]
    assert data.stop_ids == (make("bos").eos_token_id,)
    assert [data[n].source.prompt for n in range(4)] == [row["prompt"] for row in PAIRS]
    assert data.labels is None
    with pytest.raises(DataError, match="the given list: the data holds demonstrations"):
        prepare_dataset([{"prompt": "Q", "completion": "x"}], "pairs", make("bos"))


def test_notes_say_what_is_done_about_templates(make, tmp_path):
    chat = [{"messages": [u("Q"), a("x")]}]
    assert any("no chat template" in note for note in prepare_dataset(chat, "demonstrations", make("bos")).notes)
    assert any("without the chat template" in note for note in prepare_dataset(PAIRS, "pairs", make("chatml")).notes)
    settings = {"columns": {"prompt": "instruction"}}
    data = prepare_dataset(PAIRS, "pairs", make("chatml"), settings)
    assert make("chatml").decode(data[0].prompt) == "<|im_start|>user\nHi 0<|im_end|>\n<|im_start|>assistant\n"
    assert not any("without the chat template" in note for note in data.notes)
    split = prepare_dataset(PAIRS, "pairs", make("bos"), {"split": "test"})
    assert any("split 'test' chooses nothing" in note for note in split.notes)


def test_the_limit(make):
    rows = PAIRS
    assert prepare_dataset(rows, "pairs", make("bos"), context=100).max_length == 100
    assert prepare_dataset(rows, "pairs", make("bos"), {"max_length": 60}, context=100).max_length == 60
    with pytest.raises(UsageError, match="max_length=200 is more than the model's context of 100"):
        prepare_dataset(rows, "pairs", make("bos"), {"max_length": 200}, context=100)
    with pytest.raises(DataError, match="the given list: nothing is left to train on"):
        prepare_dataset(rows, "pairs", make("bos"), {"max_length": 3})


def test_pairs_are_collated_chosen_first_then_rejected(make):
    tokenizer = make("bos")
    data = prepare_dataset(PAIRS, "pairs", tokenizer)
    batch = data.collate([data[0], data[2]])
    ids, attention, counts = batch.rows.input_ids, batch.rows.attention_mask, batch.rows.completion_mask
    assert ids.dtype == attention.dtype == torch.long
    assert counts.dtype == torch.bool
    texts = [tokenizer.decode(row[keep.bool()]) for row, keep in zip(ids, attention, strict=True)]
    assert texts == [
        "<s>Hi 0 there dog</s>",
        "<s>Hi 2 there dog there dog there dog</s>",
        "<s>Hi 0 no</s>",
        "<s>Hi 2 no</s>",
    ]
    counted = [tokenizer.decode(row[keep]) for row, keep in zip(ids, counts, strict=True)]
    assert counted[1:3] == [" there dog there dog there dog</s>", " no</s>"]
    # Right padding: attention never rises again.
    assert bool((attention[:, 1:] <= attention[:, :-1]).all())
    assert set(ids[attention == 0].tolist()) == {data.pad_token_id}
    assert batch.labels.keys() == {"ids"}
    assert batch.labels["ids"].tolist() == [0, 2]
    lengths = counts.sum(1)
    assert Pairs.kind == data.kind
    assert lengths.tolist() == [len(c) for k in (0, 1) for c in (data[0].completions[k], data[2].completions[k])]


def test_optional_labels_only_where_every_row_has_them(make):
    rows = [{**PAIRS[0], "preference": 0.75, "score_chosen": 2}, {**PAIRS[1], "preference": 0.5}]
    data = prepare_dataset(rows, "pairs", make("bos"))
    labels = data.collate([data[0], data[1]]).labels
    assert labels.keys() == {"ids", "preference"}
    assert labels["preference"].tolist() == [0.75, 0.5]
    # Not even where a batch happens to hold only rows that have them: a row must not depend on its neighbours.
    assert data.collate([data[0]]).labels.keys() == {"ids", "preference"}
    assert "'chosen_score' is known for 1 of 2 rows only, and is not used" in data.notes


def test_holes_reach_the_completion_mask(make):
    rows = [{"messages": [u("Hi"), a("one"), u("and"), a("two")]}, {"messages": [u("Hi"), a("x")]}]
    data = prepare_dataset(rows, "demonstrations", make("chatml"))
    batch = data.collate([data[0], data[1]])
    row, counts = batch.rows.input_ids[0], batch.rows.completion_mask[0]
    assert make("chatml").decode(row[counts]) == "one<|im_end|>two<|im_end|>"
    assert (data[0].masks is None, data[1].masks is None) == (False, True)


def test_labelled_rows_and_their_partners(make):
    tokenizer = make("bos")
    data = prepare_dataset(LABELLED, "labelled", tokenizer, {"max_length": 16}, mismatched=True, seed=3)
    assert Labelled.kind == data.kind
    assert data.labels.tolist() == [bool(row["label"]) for row in LABELLED]
    batch = data.collate([data[n] for n in range(len(data))])
    assert batch.labels["desirable"].tolist() == data.labels.tolist()
    foreign = batch.mismatched
    assert batch.mismatched_ref_logps is None
    for number in range(len(data)):
        partner = data.partners[number]
        keep = foreign.attention_mask[number].bool()
        text = tokenizer.decode(foreign.input_ids[number][keep])
        assert text == f"<s>Hi {number // 2} you {partner}</s>"
        assert partner // 2 != number // 2
        counted = foreign.input_ids[number][foreign.completion_mask[number]]
        assert tokenizer.decode(counted) == f" you {partner}</s>"


def test_a_partner_is_cut_to_the_limit(make):
    rows = [
        {"prompt": "Hi there dog cat sky blue", "completion": " x", "label": True},
        {"prompt": "Hi", "completion": " there dog cat sky blue", "label": False},
    ]
    lengths = [len(e.prompt) + len(e.completions[0]) for e in prepare_dataset(rows, "labelled", make("bos")).examples]
    limit = max(lengths)
    data = prepare_dataset(rows, "labelled", make("bos"), {"max_length": limit}, mismatched=True)
    mismatched = data.collate([data[0]]).mismatched
    assert mismatched.input_ids.shape == (1, limit)
    assert bool(mismatched.attention_mask.all())


@pytest.mark.parametrize("seed", range(5))
def test_partners_have_other_prompts_also_where_one_prompt_is_common(seed):
    prompts = ["same"] * 20 + ["a", "b", "b"]
    partners = draw_partners(prompts, seed)
    assert all(prompts[row] != prompts[partner] for row, partner in enumerate(partners))
    assert np.array_equal(partners, draw_partners(prompts, seed))
    distinct = draw_partners(range(50), seed)
    assert sorted(distinct.tolist()) == list(range(50))


def test_partners_need_two_prompts_and_labels(make):
    with pytest.raises(DataError, match="share one prompt"):
        prepare_dataset([{**row, "prompt": "Hi"} for row in LABELLED], "labelled", make("bos"), mismatched=True)
    with pytest.raises(UsageError, match="not for pairs"):
        prepare_dataset(PAIRS, "pairs", make("bos"), mismatched=True)


def test_prompts_are_rows_without_a_completion(make):
    data = prepare_dataset([{"prompt": "Hi", "answer": 4}, {"prompt": "Hi there"}], "prompts", make("bos"))
    batch = collate([data[0], data[1]], pad_token_id=9)
    assert len(batch.rows) == 2
    assert not bool(batch.rows.completion_mask.any())
    assert data[0].source.columns == {"answer": 4}
    with pytest.raises(UsageError, match="at least one example"):
        collate([])
