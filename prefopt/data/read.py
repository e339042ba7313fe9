"""Rows from wherever they are: files, directories, the hub, `datasets` objects, lists of dicts."""

import csv
import gzip
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from prefopt.core.console import say
from prefopt.core.errors import DataError, did_you_mean
from prefopt.data.values import plain, without_tool_nulls

SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class Split(NamedTuple):
    """Which split is read, where a source has several.

    Attributes:
        name: The split; of held-out data the one that is trained on.
        held_out: Whether the data are held out, so that another split than ``name`` is wanted.
        chosen: The split of held-out data that the user has named.
    """

    name: str
    held_out: bool = False
    chosen: str | None = None

    def among(self, names: Sequence[str], source: str) -> str:
        """The one of these splits that is meant.

        Raises:
            DataError: None is.
        """
        listed = ", ".join(map(repr, names))
        if not self.held_out or self.chosen is not None:
            wanted, setting = (self.chosen, "eval_split") if self.held_out else (self.name, "split")
            if wanted not in names:
                raise DataError(f"{source} has no split {wanted!r}; set data.{setting} to one of {listed}.")
            return wanted
        if len(names) == 1:
            return names[0]
        # "train_prefs" has its counterpart in "test_prefs".
        likely = [self.name.replace("train", word) for word in HELD_OUT if "train" in self.name] + list(HELD_OUT)
        found = next((name for name in likely if name in names and name != self.name), None)
        if found is None:
            raise DataError(f"{source} has the splits {listed}; say which one is held out with data.eval_split.")
        say(f"{source}: the split {found!r} is the held-out data.")
        return found


HELD_OUT = ("validation", "valid", "val", "eval", "dev", "test")
"""Names of splits that are not trained on, in the order in which they are taken for an evaluation."""


def load_rows(source: Any, split: str | Split = "train") -> list[dict]:
    """Read a dataset into a list of rows.

    Args:
        source: a path to .json, .jsonl, .csv, .tsv (each also .gz) or .parquet; a directory saved by `datasets` or
            holding data files; a hub id; a `datasets.Dataset` or `DatasetDict`; a data frame of pandas or polars, or
            an Arrow table; or a list of dicts or of rows of a frame.
        split: which split, where the source has several. A single file, frame or list has none.

    Null fields inside tool calls and tool schemas are left out, unless the rows come from JSON: tables add them.

    Raises:
        DataError: the source is missing, unreadable, empty, or not rows with named columns.
    """
    name = describe(source)
    split = split if isinstance(split, Split) else Split(split)
    rows = _load_path(str(source), split) if isinstance(source, (str, Path)) else _from_object(source, split, name)
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


def _load_path(source: str, split: Split) -> list:
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


def _load_directory(path: Path, split: Split) -> list[dict]:
    import datasets

    saved = (path / "dataset_dict.json").exists() or (path / "state.json").exists()
    try:
        data = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path))
    except Exception as error:
        raise DataError(f"the directory {path} cannot be read as a dataset: {_first_line(error)}") from error
    return _from_object(data, split, str(path))


def _load_hub(source: str, split: Split) -> list[dict]:
    import datasets

    try:
        # Which split is held out can be said when all are known.
        data = datasets.load_dataset(source, split=None if split.held_out else split.name)
    except Exception as error:
        why = _first_line(error)
        if isinstance(error, ConnectionError) or "offline" in why.lower() or "connect" in why.lower():
            why = "the Hugging Face hub cannot be reached (offline?); give a local file or a downloaded dataset"
        elif "script" in why.lower():
            why = "it needs a loading script, which `datasets` refuses; convert it to JSONL or Parquet"
        elif "config name is missing" in why.lower():
            why += " Load it with datasets.load_dataset(id, config) and pass the result"
        raise DataError(f"{source} is no local path, and loading it from the hub failed: {why}.") from error
    return _from_object(data, split, source)


def _from_object(data: Any, split: Split, name: str) -> list:
    """Rows of an object in memory."""
    if isinstance(data, (list, tuple)):
        return [_row(row) for row in data]
    frame = next((getattr(data, method) for method in ("to_dicts", "to_pylist") if hasattr(data, method)), None)
    if frame is not None:  # polars; Arrow
        refuse_doubles(getattr(data, "column_names", ()), name)
        return _table(frame())
    if hasattr(data, "iloc") and hasattr(data, "columns"):  # pandas
        refuse_doubles(data.columns, name)
        return _table(data.to_dict("records"))
    if (
        isinstance(data, dict)
        and not hasattr(data, "column_names")
        and not {"train", split.name, *HELD_OUT} & set(data)
    ):
        raise DataError(
            f"{name} is a dict without the split {split.name!r}; give a list of dicts, or a dict of splits."
        )
    if isinstance(data, dict):
        return _from_object(data[split.among(list(data), name)], split, name)
    if hasattr(data, "to_list") and hasattr(data, "format"):
        # to_list reads the table below and would skip a transform that the user has set.
        custom = data.format["type"] == "custom"
        return _table((dict(row) for row in data) if custom else data.with_format(None).to_list())
    if hasattr(data, "take"):
        raise DataError(f"{name} is a stream; materialise it: datasets.Dataset.from_list(list(stream.take(n))).")
    raise DataError(
        f"{name} is no dataset: give a path, a hub id, a datasets.Dataset, a data frame or a list of dicts."
    )


def _row(row: Any) -> Any:
    """A row of a list: a dict, or a row of a frame, as ``iterrows`` and ``itertuples`` give them."""
    for method in ("to_dict", "_asdict"):
        row = getattr(row, method)() if hasattr(row, method) else row
    # The rows may have been in an Arrow table before, which leaves its null fields in them.
    return without_tool_nulls(plain(row)) if isinstance(row, Mapping) else row


def _table(rows: Iterable[dict]) -> list[dict]:
    return [without_tool_nulls(plain(row)) for row in rows]


def refuse_doubles(columns: Iterable[Any], where: str) -> None:
    """Refuse columns of one name, of which only the last would be read.

    Raises:
        DataError: With the name.
    """
    double = next((column for column, count in Counter(columns).items() if count > 1), None)
    if double is not None:
        raise DataError(f"{where}: the column {double!r} is there twice; rename or remove one.")


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
        return _from_object(pyarrow.parquet.read_table(path), Split("train"), str(path))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not readable Parquet: {_first_line(error)}") from error


def _parse_csv(text: str, delimiter: str, path: Path) -> list[dict]:
    csv.field_size_limit(sys.maxsize)
    # newline="" leaves the ends of lines to the reader: they are \n, \r or both, and no other character ends one. A
    # strict reader refuses a quote that is never closed, which would take all that follows into its field.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records, start = [], 1
    try:
        for fields in reader:
            if fields:
                records.append((start, fields))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {start}: the record that begins there cannot be read ({error}). A field with a quote, a "
            'comma or a line break stands in quotes, and a quote in it is doubled (""); or save the data as JSONL.'
        ) from error
    if not records:
        return []
    (_, header), *records = records
    # Spreadsheets end their lines with empty columns that have no name.
    while header and not header[-1].strip() and not any("".join(fields[len(header) - 1 :]) for _, fields in records):
        header = header[:-1]
        records = [(line, fields[: len(header)]) for line, fields in records]
    refuse_doubles(header, str(path))
    for line, fields in records:
        if len(fields) != len(header):
            raise DataError(
                f"{path}, line {line}: the record that begins there has another number of fields ({len(fields)}) than "
                f"the header ({len(header)}); check its quotes."
            )
    return [dict(zip(header, fields, strict=True)) for _, fields in records]


class _DoubleKey(ValueError):
    """A key that stands twice in one object, of which Python would take the last value."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _DoubleKey(f"the key {key!r} is there twice in one object; remove one")
    return made


def _loads(text: str) -> Any:
    """JSON as it stands there; NaN and Infinity, which Python would read, are null."""
    return json.loads(text, object_pairs_hook=_object, parse_constant=lambda name: None)


def _parse_json(text: str, path: Path, *, lines: bool) -> list:
    # A list in a .jsonl file and lines in a .json file are both common, and neither can be mistaken.
    if not text.strip():
        return []
    if lines and not text.lstrip().startswith("["):
        return _parse_lines(text, path)
    try:
        data = _loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and not text.lstrip().startswith("["):
            return _parse_lines(text, path)
        raise DataError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from error
    except (ValueError, RecursionError) as error:
        _refuse(str(path), error)
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
            rows.append(_loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}.") from error
        except (ValueError, RecursionError) as error:
            _refuse(f"{path}, line {number}", error)
    return rows


def _refuse(where: str, error: Exception) -> NoReturn:
    why = "it is nested too deeply" if isinstance(error, RecursionError) else _first_line(error)
    raise DataError(f"{where} cannot be read: {why}.") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
