"""The real files, with the tokenizer of a real model. Skipped where the folder is not there."""

import pytest

from prefopt.core.errors import DataError
from prefopt.data import load_rows, prepare_dataset, render_prompt
from prefopt.data.reasons import Cause, Reason

pytestmark = pytest.mark.shared
LIMIT = {"max_length": 512, "truncation": "keep-start"}


def check(data, tokenizer, sample):
    """Decoded ids are the text, with BOS and EOS once, within the limit."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for example in data.examples[:: max(len(data) // sample, 1)]:
        assert example.prompt.tolist() == tokenizer(render_prompt(example.source.prompt, tokenizer)).input_ids
        for number, ids in enumerate(example.completions):
            row = [*example.prompt.tolist(), *ids.tolist()]
            assert row.count(bos) == 1
            assert len(row) <= data.max_length
            assert (ids[-1] == eos) or len(row) == data.max_length
            assert ids.tolist().count(eos) == (ids[-1] == eos)
            source = example.source
            answer = (source.chosen, source.rejected)[number] if data.kind == "pairs" else source.completion
            words = render_prompt(source.prompt, tokenizer) + answer[-1]["content"]
            whole = tokenizer.decode(tokenizer(words).input_ids, skip_special_tokens=True)
            text = tokenizer.decode(row, skip_special_tokens=True)
            assert whole == text if ids[-1] == eos else whole.startswith(text)


def test_pairs(shared, stories):
    source = shared / "data" / "llamafactory_dpo_en_demo.json"
    data = prepare_dataset(source, "pairs", stories, LIMIT, context=512)
    assert data.audit.read == 300
    assert data.audit.kept == len(data) == 174
    check(data, stories, 40)
    with pytest.raises(DataError, match=r"84% of the rows.*48 kept.*keep-start"):
        prepare_dataset(source, "pairs", stories, {"max_length": 512}, context=512)


def test_feedback(shared, stories):
    source = shared / "data" / "llamafactory_kto_en_demo.json"
    data = prepare_dataset(source, "labelled", stories, LIMIT, context=512, mismatched=True)
    assert (data.audit.read, len(data)) == (300, 191)
    assert 80 < data.labels.sum() < 110
    assert all(len(row.prompt) + len(row.mismatched[0]) <= 512 for row in (data[n] for n in range(len(data))))
    with pytest.raises(DataError, match="150 of 300 are not"):
        prepare_dataset(source, "demonstrations", stories)


def test_demonstrations(shared, stories):
    data = prepare_dataset(shared / "data" / "llamafactory_alpaca_en_demo.json", "demonstrations", stories, LIMIT)
    assert data.audit.read == len(data) == 999
    check(data, stories, 40)


def test_judged_pairs(shared, stories):
    rows = load_rows(shared / "data" / "alpacaeval_pairs.jsonl.gz")
    assert len(rows) == 6437
    ties = [row for row in rows if row["preference"] == 1.5]
    others = [row for row in rows[:300] if row["preference"] != 1.5]
    data = prepare_dataset([*others, *ties], "pairs", stories, LIMIT)
    assert data.audit.causes[Cause(Reason.TIE)] == len(ties) == 9
    assert all(0.5 < example.labels["preference"] <= 1 for example in data.examples)
    check(data, stories, 20)
