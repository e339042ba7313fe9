"""Tables, data frames and text that stands for lists: whatever a value went through, it is read as it was meant."""

import collections
import csv
import json

import datasets
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from skipped import sentences

from prefopt.core.errors import DataError
from prefopt.data import DataSettings, Encoder, LabelledExample, PairExample, load_rows, prepare_dataset, to_examples
from prefopt.data.read import Split
from prefopt.data.values import plain, read_tools


def u(text):
    return {"role": "user", "content": text}


def a(text, **more):
    return {"role": "assistant", "content": text, **more}


def row(name="f", **arguments):
    properties = {key: {"type": "string"} for key in arguments}
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    tool = {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}
    return {
        "prompt": [u(name)],
        "tools": [tool],
        "chosen": [a("", tool_calls=[call])],
        "rejected": [a("No.")],
    }


CALLS = [row("weather", city="Rome"), row("clock", zone="CET", exact=None)]
WITHOUT_NULL = [CALLS[0], row("clock", zone="CET")]
WITHOUT_NULL[1]["tools"][0]["function"]["parameters"]["properties"]["exact"] = {"type": "string"}
PAIRS = [{"prompt": "Q", "chosen": "x", "rejected": "y", "score_chosen": 2.0, "score_rejected": 1.0}]
MESSAGES = [{"prompt": [u("Q")], "chosen": [a('it\'s\n"x"')], "rejected": [a("y")]}]
READ = PairExample([u("Q")], [a('it\'s\n"x"')], [a("y")])


# ---- tables ----------------------------------------------------------------------------------------------------------


def parquet(tmp_path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def through_parquet_and_pandas(tmp_path, rows):
    """Lists become arrays of numpy."""
    return pandas.read_parquet(parquet(tmp_path, rows))


TABLES = {
    "parquet": parquet,
    "Dataset": lambda _, rows: datasets.Dataset.from_list(rows),
    "DatasetDict": lambda _, rows: datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}),
    "list of a Dataset": lambda _, rows: list(datasets.Dataset.from_list(rows)),
    "Arrow": lambda _, rows: pyarrow.Table.from_pylist(rows),
    "frame": lambda _, rows: pandas.DataFrame(rows),
    "frame of a file": through_parquet_and_pandas,
    "rows of a frame": lambda _, rows: [one for _, one in pandas.DataFrame(rows).iterrows()],
    "records of a frame": lambda path, rows: through_parquet_and_pandas(path, rows).to_dict("records"),
    "named tuples": lambda _, rows: list(pandas.DataFrame(rows).itertuples(index=False)),
    "polars": lambda _, rows: type("Frame", (), {"to_dicts": lambda self: rows, "columns": list(rows[0])})(),
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_adds_no_null_fields_to_tools_and_calls(table, tmp_path):
    assert to_examples(load_rows(TABLES[table](tmp_path, CALLS))).examples == to_examples(WITHOUT_NULL).examples


@pytest.mark.parametrize("table", TABLES)
def test_plain_columns_of_a_table(table, tmp_path):
    assert load_rows(TABLES[table](tmp_path, PAIRS)) == PAIRS


def test_null_arguments_of_json_stay(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(CALLS))
    call = load_rows(tmp_path / "rows.json")[1]["chosen"][0]["tool_calls"][0]
    assert call["function"]["arguments"] == {"zone": "CET", "exact": None}


def test_what_a_frame_marks_as_missing(make):
    frame = pandas.DataFrame({"prompt": ["Q", "R"], "completion": ["x", None], "tools": [float("nan"), "[]"]})
    assert load_rows(frame)[1]["completion"] is None
    assert load_rows(frame)[0]["tools"] is None
    assert [plain(value) for value in (pandas.NA, pandas.NaT, float("nan"))] == [None, None, None]
    frame["label"] = pandas.array([True, None], dtype="boolean")
    assert to_examples(load_rows(frame)[:1]).examples == [LabelledExample("Q", "x", True, columns={"tools": None})]


def test_columns_of_one_name_are_refused(tmp_path):
    frame = pandas.DataFrame([["a", "b", "c"]], columns=["prompt", "chosen", "chosen"])
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["prompt", "prompt"])
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected,chosen\na,b,c,d\n")
    for source in (frame, table, tmp_path / "rows.csv"):
        with pytest.raises(DataError, match=r"the column '(chosen|prompt)' is there twice"):
            load_rows(source)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [["prompt"], ["prompt", "chosen", "rejected"]])
@pytest.mark.parametrize(
    "mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\n", '"', "\0"]
)
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_only_line_ends_outside_of_quotes_end_a_record(tmp_path, columns, mark, name):
    text = f"Once{mark}a, \ttime"
    with open(tmp_path / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",")
        writer.writerows([columns, [text] * len(columns), ["b"] * len(columns)])
    assert load_rows(tmp_path / name) == [dict.fromkeys(columns, text), dict.fromkeys(columns, "b")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('a,b\n1,2\n3,"4\n5,6\n7,8\n', "line 3: the record that begins there cannot be read"),
        ('a,b\n1,"2" 3\n4,5\n', "line 2: the record"),
        ('a,b\n1,"2\n3"\n4\n', "line 4: .* number of fields"),
    ],
)
def test_an_open_quote_does_not_swallow_the_file(tmp_path, text, words):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        load_rows(tmp_path / "rows.csv")


def test_a_nameless_column_gives_no_label(tmp_path):
    pandas.DataFrame({"prompt": ["Q"] * 3, "chosen": ["x"] * 3, "rejected": ["y"] * 3}).to_csv(tmp_path / "rows.csv")
    reading = to_examples(load_rows(tmp_path / "rows.csv"))
    assert [(each.labels, each.columns) for each in reading.examples] == [({}, {"": str(n)}) for n in range(3)]


def test_nameless_columns_of_a_spreadsheet(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,completion,,\nQ,x,,\n\nR,y,,\n")
    assert load_rows(tmp_path / "rows.csv") == [{"prompt": "Q", "completion": "x"}, {"prompt": "R", "completion": "y"}]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", '[{"prompt": "Q", "chosen": "x", "chosen": "y"}]', "the key 'chosen' is there twice"),
        (
            "a.jsonl",
            '{"prompt": "Q"}\n{"prompt": "Q", "meta": {"a": 1, "a": 2}}',
            "line 2 .*the key 'a' is there twice",
        ),
        ("a.jsonl", '{"prompt": ' + "[" * 100_000, "line 1 cannot be read: it is nested too deeply"),
        ("a.json", '[{"score": ' + "1" * 5000 + "}]", "cannot be read"),
    ],
)
def test_json_that_python_would_read_otherwise(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words):
        load_rows(tmp_path / name)


def test_not_a_number_is_null(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "Q", "tools": NaN, "margin": -Infinity}')
    assert load_rows(tmp_path / "a.jsonl") == [{"prompt": "Q", "tools": None, "margin": None}]


def test_half_of_a_character_drops_the_row(make):
    texts = ["cut \ud83d", "\ude00", [u("a \udbff")], "whole \U0001f600"]
    rows = [{"prompt": text, "chosen": "good", "rejected": "bad"} for text in texts]
    rows += [{**rows[-1], "chosen": [a("", tool_calls=[{"function": {"name": "\ud83d"}}])]}]
    reading = to_examples(rows)
    assert [example.row for example in reading.examples] == [3]
    words = "with half of a character (a lone surrogate, such as an emoji that was cut) in"
    assert sentences(reading.dropped) == {f"{words} 'prompt'": 3, f"{words} 'chosen'": 1}
    assert len(prepare_dataset([rows[0], *[rows[3]] * 3], "pairs", make("bos"))) == 3


# ---- text that spells lists and mappings -----------------------------------------------------------------------------

SPELLINGS = {"JSON": json.dumps, "repr": repr, "JSON in lines": lambda value: json.dumps(value, indent=1)}


@pytest.mark.parametrize("spell", SPELLINGS)
def test_messages_as_text(spell):
    rows = [{name: SPELLINGS[spell](value) for name, value in MESSAGES[0].items()}] * 2
    assert to_examples(rows).examples == [READ, READ]
    assert to_examples([{**rows[0], "prompt": "Q"}]).examples[0].chosen == READ.chosen
    single = {"prompt": "Q", "chosen": SPELLINGS[spell](a("x")), "rejected": SPELLINGS[spell](a("y"))}
    assert to_examples([single]).examples == [PairExample([u("Q")], [a("x")], [a("y")])]


def test_a_frame_through_csv_and_back(tmp_path):
    pandas.DataFrame(MESSAGES * 3).to_csv(tmp_path / "rows.csv", index=False)
    assert to_examples(load_rows(tmp_path / "rows.csv")).examples == [READ] * 3


def test_other_columns_as_text():
    rows = [{"prompt": "Q", "completions": '["x", "y"]', "scores": "[1, 2]"}]
    assert to_examples(rows).examples[0].scores == (1.0, 2.0)
    pair = {"input": json.dumps({"messages": [u("Q")]}), "preferred_output": json.dumps([a("x")])}
    assert to_examples([{**pair, "non_preferred_output": str([a("y")])}]).examples[0].prompt == [u("Q")]
    assert to_examples([{"instruction": "Q", "history": "[['1', '2']]", "output": "x"}]).examples[0].prompt == [
        u("1"),
        a("2"),
        u("Q"),
    ]


def test_text_that_only_looks_like_a_list_stays_text():
    for text in ('["red", "blue"]', '{"city": "Rome"}', "[x]", "[1, 2", '[{"from": "Rome", "to": "Bari"}]'):
        assert to_examples([{"prompt": text, "chosen": text + "!", "rejected": text}]).examples[0].prompt == text


def test_messages_that_were_printed_without_commas_are_not_trained_on_as_text():
    printed = "[{'role': 'user', 'content': 'Q'}\n {'role': 'assistant', 'content': 'x'}]"
    rows = [{"prompt": "Q", "chosen": printed, "rejected": printed.replace("x", "y")}]
    assert sentences(to_examples(rows).dropped) == {"whose 'chosen' is text that is not JSON": 1}


# ---- tool calls and tools --------------------------------------------------------------------------------------------

ARGUMENTS = {
    "mapping": {"city": "Rome"},
    "JSON": '{"city": "Rome"}',
    "JSON in JSON": json.dumps('{"city": "Rome"}'),
    "repr": "{'city': 'Rome'}",
}
TOJSON = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
    '<call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}{% endfor %}<|im_end|>\n'
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
ADDED = TOJSON.replace("{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}")
AS_IT_COMES = TOJSON.replace("{{ c.function.arguments | tojson }}", "{{ c.function.arguments }}")
WHOLE = TOJSON.replace(
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}', "{{ c.function | tojson }}"
)


@pytest.mark.parametrize(
    "template", [TOJSON, ADDED, AS_IT_COMES, WHOLE], ids=["tojson", "added", "as it comes", "whole"]
)
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments_of_calls_are_json_once(make, arguments, template):
    tokenizer = make("own")(template)
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS[arguments]}}
    pair = {"prompt": [u("Q")], "chosen": [a(None, tool_calls=[call])], "rejected": [a("no")]}
    example = to_examples([pair]).examples[0]
    _, (ids, _) = Encoder(tokenizer, DataSettings()).completion(example.prompt, example.chosen)
    assert tokenizer.decode(ids) == '<call>{"name": "weather", "arguments": {"city": "Rome"}}<|im_end|>'


def test_calls_without_arguments_and_calls_that_are_none():
    def read(**turn):
        return to_examples([{"messages": [u("Q"), a("", **turn)]}])

    def calls(reading):
        return reading.examples[0].completion[0].get("tool_calls")

    function = {"name": "f", "arguments": ""}
    assert calls(read(tool_calls=[{"function": function}])) == [{"function": {"name": "f", "arguments": {}}}]
    assert calls(read(tool_calls=json.dumps([{"function": function}])))[0]["function"]["arguments"] == {}
    older = calls(read(function_call={"name": "f", "arguments": '{"x": 1}'}))
    assert older == [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    for given in ([{"function": {"name": "f", "arguments": "no JSON"}}], [{"name": "f", "arguments": "[1]"}]):
        assert sentences(read(tool_calls=given).dropped) == {
            "with a tool call whose arguments are not a JSON object": 1
        }
    assert sentences(read(tool_calls=[3]).dropped) == {"whose tool calls are not a list of calls": 1}


@pytest.mark.parametrize("tools", ["", " ", "[]", "null", "None", "nan", float("nan"), None, [], ()])
def test_no_tools(make, tools):
    data = prepare_dataset(
        [{"prompt": [u("Q")], "chosen": "x", "rejected": "y", "tools": tools}], "pairs", make("own")(TOJSON)
    )
    assert len(data) == 1


def test_tools_as_text():
    tool = {"type": "function", "function": {"name": "f"}}
    for given in ([tool], json.dumps([tool]), str([tool]), [json.dumps(tool)], tool, json.dumps(tool)):
        assert read_tools(given) == [tool]


# ---- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [(1, -1), (1.0, -1.0), ("1", "-1"), ("up", "down"), ("thumbs_up", "thumbs_down"), ("Good", "bad"), ("👍", "👎")],
)
def test_marks_of_people(labels):
    rows = [{"prompt": "Q", "completion": "x", "label": label} for label in labels]
    assert [example.desirable for example in to_examples(rows).examples] == [True, False]
    logs = [{"messages": [u("Q"), a("x")], "feedback": label} for label in labels]
    assert [example.desirable for example in to_examples(logs).examples] == [True, False]


def test_a_label_column_with_zero_and_minus_one_is_refused():
    rows = [{"prompt": "Q", "completion": "x", "label": label} for label in (1, "0", -1)]
    with pytest.raises(DataError, match="'label' holds 0 and -1"):
        to_examples(rows)


def labelled(*labels):
    return [{"prompt": f"Hi {n}", "completion": " you", "label": label} for n, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        ([True] * 4, "warning: all rows are desirable"),
        ([-1] * 4, "warning: all rows are undesirable"),
        ([1] * 9 + [0], "labels: 9 desirable, 1 undesirable; only 10% of the rows are undesirable"),
        ([1, 0], "labels: 1 desirable, 1 undesirable"),
    ],
)
def test_the_balance_of_labels_is_said(make, labels, note):
    notes = prepare_dataset(labelled(*labels), "labelled", make("bos")).notes
    assert sum(one.startswith(note) for one in notes) == 1
    assert ("only" in note) == any("only" in one for one in notes)


# ---- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("splits", "settings", "read"),
    [
        (("train", "test"), {}, "test"),
        (("train", "test", "validation"), {}, "validation"),
        (("train", "test", "validation"), {"eval_split": "test"}, "test"),
        (("train_sft", "train_prefs", "test_sft", "test_prefs"), {"split": "train_prefs"}, "test_prefs"),
        (("train", "train_large"), {"eval_split": "train"}, "train"),
        (("only",), {}, "only"),
    ],
)
def test_held_out_data_are_not_the_split_that_is_trained_on(make, tmp_path, splits, settings, read):
    data = {name: datasets.Dataset.from_list([{**PAIRS[0], "prompt": name}]) for name in splits}
    both = datasets.DatasetDict(data)
    both.save_to_disk(tmp_path / "saved")
    for source in (both, tmp_path / "saved"):
        made = prepare_dataset(source, "pairs", make("bos"), settings, held_out=True)
        assert made[0].source.prompt == read


def test_splits_that_are_not_told_apart():
    names = Split("train", held_out=True)
    with pytest.raises(DataError, match=r"'train', 'extra'; say which one is held out with data.eval_split"):
        names.among(["train", "extra"], "x")
    with pytest.raises(DataError, match=r"no split 'dev'; set data.eval_split to one of 'train'"):
        Split("train", held_out=True, chosen="dev").among(["train"], "x")


def test_rows_of_other_mappings():
    assert load_rows([collections.ChainMap({"prompt": "Q"})]) == [{"prompt": "Q"}]
