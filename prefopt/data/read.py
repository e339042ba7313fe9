"""Rows from wherever they are: files, directories, the hub, `datasets` objects, lists of dicts."""

import csv
import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

from prefopt.core.errors import DataError, did_you_mean

SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def load_rows(source: Any, split: str = "train") -> list[dict]:
    """Read a dataset into a list of rows.

    Args:
        source: a path to .json, .jsonl, .csv, .tsv (each also .gz) or .parquet; a directory saved by `datasets` or
            holding data files; a hub id; a `datasets.Dataset` or `DatasetDict`; or a list of dicts.
        split: which split, where the source has several. A single file or list has none.

    Raises:
        DataError: the source is missing, unreadable, empty, or not rows with named columns.
    """
    name = describe(source)
    if isinstance(source, (str, Path)):
        rows = _load_path(str(source), split)
    elif isinstance(source, (list, tuple)):
        rows = list(source)
    else:
        rows = _from_datasets(source, split, name)
    if not rows:
        raise DataError(f"{name} is empty: there is no row to train on.")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{name}: row {number} is a {type(row).__name__}; rows must be objects with named columns.")
    return rows


def describe(source: Any) -> str:
    """How a source is called in messages."""
    return str(source) if isinstance(source, (str, Path)) else f"the given {type(source).__name__}"


def has_splits(source: Any) -> bool:
    """Whether ``split`` chooses anything in this source."""
    if isinstance(source, (str, Path)):
        return not Path(source).expanduser().is_file()
    return isinstance(source, dict)


def _load_path(source: str, split: str) -> list:
    path = Path(source).expanduser()
    if path.is_dir():
        return _load_directory(path, split)
    if path.is_file():
        return _load_file(path)
    looks_like_file = path.name.removesuffix(".gz").endswith(SUFFIXES) or source.startswith((".", "/", "~"))
    if looks_like_file or not _HUB_ID.fullmatch(source):
        near = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else [])
        raise DataError(f"the dataset {source} does not exist (looked in {path.parent.resolve()}).{near}")
    return _load_hub(source, split)


def _load_directory(path: Path, split: str) -> list[dict]:
    import datasets

    saved = (path / "dataset_dict.json").exists() or (path / "state.json").exists()
    try:
        data = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path))
    except Exception as error:
        raise DataError(f"the directory {path} cannot be read as a dataset: {_first_line(error)}") from error
    return _from_datasets(data, split, str(path))


def _load_hub(source: str, split: str) -> list[dict]:
    import datasets

    try:
        data = datasets.load_dataset(source, split=split)
    except Exception as error:
        why = _first_line(error)
        if isinstance(error, ConnectionError) or "offline" in why.lower() or "connect" in why.lower():
            why = "the Hugging Face hub cannot be reached (offline?); give a local file or a downloaded dataset"
        elif "script" in why.lower():
            why = "it needs a loading script, which `datasets` refuses; convert it to JSONL or Parquet"
        elif "config name is missing" in why.lower():
            why += " Load it with datasets.load_dataset(id, config) and pass the result"
        raise DataError(f"{source} is no local path, and loading it from the hub failed: {why}.") from error
    return _from_datasets(data, split, source)


def _from_datasets(data: Any, split: str, name: str) -> list:
    if isinstance(data, dict) and not hasattr(data, "column_names") and "train" not in data and split not in data:
        raise DataError(f"{name} is a dict without the split {split!r}; give a list of dicts, or a dict of splits.")
    if isinstance(data, dict):
        if split not in data:
            raise DataError(f"{name} has no split {split!r}; set data.split to one of {', '.join(map(repr, data))}.")
        data = data[split]
    if isinstance(data, list):
        return data
    if hasattr(data, "to_list") and hasattr(data, "format"):
        # to_list reads the table below and would skip a transform that the user has set.
        return [dict(row) for row in data] if data.format["type"] == "custom" else data.with_format(None).to_list()
    if hasattr(data, "take"):
        raise DataError(f"{name} is a stream; materialise it: datasets.Dataset.from_list(list(stream.take(n))).")
    raise DataError(f"{name} is no dataset: give a path, a hub id, a datasets.Dataset or a list of dicts.")


def _load_file(path: Path) -> list:
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if kind not in SUFFIXES:
        raise DataError(f"{path}: cannot read {path.suffix or 'a file without a suffix'}; use {', '.join(SUFFIXES)}.")
    if kind == ".parquet":
        return _load_parquet(path)
    try:
        raw = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {_first_line(error)}.") from error
    if kind in (".csv", ".tsv"):
        return _parse_csv(text, "\t" if kind == ".tsv" else ",", path)
    return _parse_json(text, path, lines=kind == ".jsonl")


def _load_parquet(path: Path) -> list[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not readable Parquet: {_first_line(error)}") from error


def _parse_csv(text: str, delimiter: str, path: Path) -> list[dict]:
    csv.field_size_limit(sys.maxsize)
    rows = list(csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter))
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DataError(f"{path}: record {number} does not have as many fields as the header; check its quotes.")
    return rows


def _parse_json(text: str, path: Path, *, lines: bool) -> list:
    # A list in a .jsonl file and lines in a .json file are both common, and neither can be mistaken.
    if not text.strip():
        return []
    if lines and not text.lstrip().startswith("["):
        return _parse_lines(text, path)
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and not text.lstrip().startswith("["):
            return _parse_lines(text, path)
        raise DataError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from error
    if isinstance(data, list):
        return data
    holder = (
        next((key for key, value in data.items() if isinstance(value, list)), None) if isinstance(data, dict) else None
    )
    hint = f" Its key {holder!r} holds a list: save that list alone." if holder else ""
    raise DataError(f"{path} holds a JSON {type(data).__name__}, not a list of objects.{hint}")


def _parse_lines(text: str, path: Path) -> list:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}.") from error
    return rows


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
