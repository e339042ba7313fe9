import gzip
import json

import datasets
import pytest

from prefopt.core.errors import DataError
from prefopt.data import load_rows

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


def write(path, text):
    data = text.encode("utf-8")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


LINES = "\n".join(map(json.dumps, ROWS)) + "\n\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps(ROWS, indent=1)),
        ("a.json.gz", json.dumps(ROWS)),
        ("a.jsonl", LINES),
        ("a.jsonl.gz", LINES),
        ("lines_in.json", LINES),
        ("list_in.jsonl", json.dumps(ROWS)),
        ("bom.json", "\ufeff" + json.dumps(ROWS)),
        ("a.csv", "prompt,completion\na,b\nc,d\n"),
        ("a.tsv", "prompt\tcompletion\na\tb\nc\td\n"),
    ],
)
def test_every_file_kind_gives_the_same_rows(tmp_path, name, text):
    assert load_rows(str(write(tmp_path / name, text))) == ROWS


def test_parquet_and_saved_directories(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    data.to_parquet(tmp_path / "a.parquet")
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train_prefs": data, "test_prefs": data.select([1])}).save_to_disk(tmp_path / "two")
    assert load_rows(tmp_path / "a.parquet") == load_rows(tmp_path / "one") == ROWS
    assert load_rows(tmp_path / "two", split="test_prefs") == ROWS[1:]
    with pytest.raises(DataError, match=r"no split 'train'.*'train_prefs', 'test_prefs'"):
        load_rows(tmp_path / "two")


def test_objects_in_memory():
    data = datasets.Dataset.from_list(ROWS)
    assert load_rows(data) == load_rows(ROWS) == load_rows({"train": ROWS}) == ROWS
    assert load_rows(data.with_transform(lambda rows: {"prompt": [p * 2 for p in rows["prompt"]]}))[0] == {
        "prompt": "aa"
    }
    with pytest.raises(DataError, match="stream"):
        load_rows(data.to_iterable_dataset())


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", '[{"a": 1},\n {"a": }]', "not JSON.*line 2, column 8"),
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', "line 3 is not JSON"),
        ("a.json", "[]", "is empty"),
        ("a.jsonl", "", "is empty"),
        ("a.json", '{"data": [{"a": 1}], "x": 2}', "JSON dict, not a list.*'data'"),
        ("a.json", '["a", "b"]', "row 0 is a str"),
        ("a.json", '{"version": "1", "data": [{"a": 1}]}', "JSON dict.*'data'"),
        ("a.json", "3", "JSON int"),
        ("a.csv", "a,b\n1,2,3\n", r"line 2: .* number of fields \(3\) than the header \(2\)"),
        ("a.txt", "hello", "cannot read .txt"),
        ("a.parquet", "hello", "not readable Parquet"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, name, text, words):
    with pytest.raises(DataError, match=words) as caught:
        load_rows(str(write(tmp_path / name, text)))
    assert "\n" not in str(caught.value)


def test_not_utf8_and_not_gzip(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"a": "\xff"}]')
    (tmp_path / "b.json.gz").write_bytes(b"[]")
    with pytest.raises(DataError, match="not UTF-8"):
        load_rows(tmp_path / "a.json")
    with pytest.raises(DataError, match="cannot be read"):
        load_rows(tmp_path / "b.json.gz")


def test_missing_paths_name_the_nearest_file(tmp_path):
    write(tmp_path / "pairs.jsonl", LINES)
    with pytest.raises(DataError, match=r"does not exist.*Did you mean 'pairs.jsonl'"):
        load_rows(str(tmp_path / "pair.jsonl"))


def test_an_unreachable_hub_is_one_line(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'someone/thing' on the Hub\nlong trace")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"someone/thing is no local path.*cannot be reached") as caught:
        load_rows("someone/thing")
    assert "\n" not in str(caught.value)
