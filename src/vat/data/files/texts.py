"""Reads files of texts: CSV, Parquet, JSON lines (also .gz and .xz), and plain text with one text a line."""

import gzip
import importlib.util
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from vat.data.files.names import UNKNOWN, composed, names_of, refuse_measured
from vat.data.files.rows import not_utf8, opened_csv
from vat.data.files.tables import as_written, parquet_files, refuse_unreadable

SUFFIXES = (".csv", ".parquet", ".jsonl", ".jsonl.gz", ".jsonl.xz")
LONGEST_LINE = 2**24  # characters; a compressed file may claim any length
COMPRESSED = {".gz": gzip.open, ".xz": lzma.open}


class TextTable(NamedTuple):
    """The content of a file.

    Attributes:
        texts: The texts, none of them blank.
        labels: Class of each text by name, or `UNKNOWN`.
        groups: Group of each text by name. None without groups.
        unlabeled: Number of each spelling of no label (`vat.data.files.names.names_of`).
        places: Place of each text in its file, such as "line 3".
        ids: What identifies each text, as it is written. None if no column was named.
    """

    texts: list[str]
    labels: list[str]
    groups: list[str] | None
    unlabeled: Mapping[str, int]
    places: Sequence[str]
    ids: list[str] | None = None


def read_texts(path: Path, *, text: str, label: str | None = None, group: str | None = None, ids: str | None = None) -> TextTable:
    """Read the texts in a file, with their labels and groups. Without `label`, no text has one. A .txt file has only texts, one a line.

    Args:
        path: The file, or a folder of Parquet files.
        text: Name of the column or field of the texts.
        label: Name of the labels. A blank one, -1 and null are no label.
        group: Name of the groups.
        ids: Name of the column or field that identifies a text.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, lacks a column, holds a blank text, or needs pyarrow, which is not installed.
    """
    refuse_unreadable(path)
    wanted = list(dict.fromkeys(composed(name) for name in (text, label, group, ids) if name is not None))
    name = path.name.lower()
    plain = label is group is ids is None and name.endswith(".txt")
    if path.is_file() and not (plain or name.endswith(SUFFIXES)):
        raise ValueError(f"{path}: its name must end in {', '.join(SUFFIXES)}" + ("" if label else ", or .txt with one text a line"))
    with _faults(path):
        if plain:
            rows = _plain(path, wanted)
        elif name.endswith(".csv"):
            rows = _csv(path, wanted)
        elif name.endswith((".jsonl", ".gz", ".xz")):
            rows = _json_lines(path, wanted)
        else:
            rows = _parquet(path, wanted)
        places, columns = [], {name: [] for name in wanted}
        for place, values in rows:
            places.append(place)
            for name in wanted:
                columns[name].append(values.get(name))
        table = _table(places, columns, composed(text), label and composed(label), group and composed(group))
        return table if ids is None else table._replace(ids=as_written(columns[composed(ids)]))


def _table(places: list[str], columns: dict[str, list[Any]], text: str, label: str | None, group: str | None) -> TextTable:
    if not places:
        raise ValueError("it has no texts")
    for name, values in columns.items():
        if all(value is None for value in values) and name != label:
            raise ValueError(f"it has no {name!r} in any row")
    for place, value in zip(places, columns[text], strict=True):
        if not isinstance(value, str) or not value.strip():
            found = "is blank" if value is None or isinstance(value, str) else f"is {json.dumps(value, default=str)[:40]}"
            raise ValueError(f"the text {text!r} in {place} {found}. Write a text, or remove the row")
    labels, unlabeled = [UNKNOWN] * len(places), {}
    if label is not None:
        labels, unlabeled = names_of(columns[label], label)
        refuse_measured(labels, label)
    groups = None if group is None else names_of(columns[group], group)[0]
    if groups is not None and UNKNOWN in groups:
        raise ValueError(f"{places[groups.index(UNKNOWN)]} is of no group. {group} must be known in every row")
    return TextTable(columns[text], labels, groups, unlabeled, places)


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be used: {not_utf8(path, error)}") from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error or type(error).__name__}") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


Rows = Iterator[tuple[str, Mapping[str, Any]]]
"""The place of each row, and its values by name."""


def _refuse_absent(wanted: Sequence[str], present: Sequence[str]) -> None:
    for name in wanted:
        if name not in present:
            raise ValueError(
                f"it has no column {name!r} but {', '.join(map(repr, present))}. Name it by data.text, data.label, data.group or id"
            )
        if list(present).count(name) > 1:
            raise ValueError(f"it has two columns called {name!r}. Rename or remove one")


def _plain(path: Path, wanted: Sequence[str]) -> Rows:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(_lines(file), 1):
            yield f"line {number}", {wanted[0]: line}


def _csv(path: Path, wanted: Sequence[str]) -> Rows:
    with opened_csv(path, wanted) as (names, rows):
        _refuse_absent(wanted, names)
        places = {name: names.index(name) for name in wanted}
        for line, fields in rows:
            yield f"line {line}", {name: fields[k] for name, k in places.items()}


def _json_lines(path: Path, wanted: Sequence[str]) -> Rows:
    def read(fields: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object with each required name at most once. Otherwise Python keeps the last value silently."""
        names = [composed(name) for name, _ in fields]
        if twice := [name for name in wanted if names.count(name) > 1]:
            raise ValueError(f"it has {twice[0]!r} twice")
        return {name: value for name, (_, value) in zip(names, fields, strict=True)}

    opened = COMPRESSED.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8-sig")
    with opened as file:
        for number, line in enumerate(_lines(file), 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line, object_pairs_hook=read)
            except ValueError as error:
                raise ValueError(f"line {number} cannot be read as JSON: {error}. Write one object a line") from error
            except RecursionError as error:
                raise ValueError(f"line {number} is nested too deeply") from error
            if not isinstance(values, dict):
                raise ValueError(f"line {number} must be an object such as {{{json.dumps(wanted[0])}: …}}")
            if wanted[0] not in values:
                raise ValueError(f"line {number} has no {wanted[0]!r} but {', '.join(map(repr, values))}. data.text names the texts")
            yield f"line {number}", values


def _lines(file: IO[str]) -> Iterator[str]:
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise ValueError(f"it has a line of {LONGEST_LINE} characters or more. Write one text a line")
        yield line.rstrip("\n")


def _parquet(path: Path, wanted: Sequence[str]) -> Rows:
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError("it needs pyarrow. Run: pip install pyarrow")
    import pyarrow as pa  # pyright: ignore[reportMissingImports]
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]  # optional: a CSV does not need it

    files = parquet_files(path) if path.is_dir() else [path]
    if not files:
        raise ValueError("it is a folder without Parquet files. Name a file")
    for file in files:
        try:
            part = pq.ParquetFile(file)
            present = {composed(name): name for name in part.schema_arrow.names}
            _refuse_absent(wanted, [*present])
            columns = part.read([present[name] for name in wanted]).to_pydict()
        except pa.ArrowException as error:
            raise ValueError(f"{file.name}: {error}") from error
        for row, values in enumerate(zip(*(columns[present[name]] for name in wanted), strict=True)):
            yield f"row {row}" if len(files) == 1 else f"row {row} of {file.relative_to(path)}", dict(zip(wanted, values, strict=True))
