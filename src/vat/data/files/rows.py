"""Reads CSV files once. Refuses a file if it is not clear which column a field belongs to."""

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vat.data.files.names import composed, is_number

Rows = Iterator[tuple[int, list[str]]]
"""Each row's line in the file, counted from 1, and its fields."""

KINDS = {
    b"\x1f\x8b": "compressed by gzip. Unpack it",
    b"PK\x03\x04": "a zip archive or a workbook of Excel. Unpack it, or save it as CSV",
    b"\xd0\xcf\x11\xe0": "a workbook of Excel. Save it as CSV",
    b"\xfd7zX": "compressed by xz. Unpack it",
    b"BZh": "compressed by bzip2. Unpack it",
    b"PAR1": "a Parquet file. Let its name end in .parquet",
    b"\xff\xfe": "text in UTF-16. Save it as UTF-8",
    b"\xfe\xff": "text in UTF-16. Save it as UTF-8",
}
"""Kinds of files by their first bytes, and what to do."""


@contextmanager
def opened_csv(path: Path, wanted: Sequence[str] = ()) -> Iterator[tuple[list[str], Rows]]:
    """The names of the columns, and the rows with a field for each of them. Empty lines are left out.

    Commas after the last column, in the header or the rows, are ignored. A line `sep=,` before the header is ignored too.

    Args:
        path: The file, UTF-8.
        wanted: Names of required columns.

    Raises:
        ValueError: If the file has no header, lacks a column, or a row has more or fewer fields than the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = _records(file)
            line, header = next(records, (1, []))
            if re.fullmatch(r"sep=,?", header[0].strip() if header else "") and not any(header[1:]):
                line, header = next(records, (line, []))
            if not header:
                raise ValueError("it is empty")
            names = [composed(name) for name in header]
            while names and not names[-1]:
                names.pop()
            if len(names) == 1 and (separator := re.search(r"[;\t]|\|(?=.*\|)", header[0])):
                raise ValueError(
                    f"its fields are separated by {separator[0]!r}. Save it with commas as separators, and with decimal points"
                )
            _refuse_without_header(names, line, wanted)
            yield names, _fitting(records, len(names))
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(path, error)) from error


def not_utf8(path: Path, error: UnicodeDecodeError) -> str:
    """What a file is that should hold text in UTF-8, and what to do."""
    with path.open("rb") as file:
        start = file.read(4)
    for magic, kind in KINDS.items():
        if start.startswith(magic):
            return f"it is {kind}"
    return f"{error}. Save it as UTF-8"


def _records(file: IO[str]) -> Rows:
    reader = csv.reader(map(_without_nul, file), skipinitialspace=True, strict=True)
    line = 1
    try:
        for fields in reader:
            if len(fields) > 1 or (fields and fields[0].strip()):
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {line} is no CSV: {error}") from error


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("it holds NUL characters, as UTF-16 does. Save it as UTF-8")
    return text


def _fitting(records: Rows, number: int) -> Rows:
    for line, fields in records:
        if len(fields) != number and (len(fields) < number or any(map(str.strip, fields[number:]))):
            raise ValueError(
                f"line {line} has {len(fields)} fields, the header has {number}. Give each column a name and each row a field for it, and "
                + ("remove comments" if fields[0].startswith("#") else "put fields that hold commas in quotes")
            )
        yield line, fields


def _refuse_without_header(names: Sequence[str], line: int, wanted: Sequence[str]) -> None:
    """Refuse a first line that is clearly no list of column names with commas."""
    missing = [name for name in wanted if name not in names]
    counted = list(map(str, range(len(names))))  # pandas' names of columns without names
    if (missing or not wanted) and names and names != counted and sum(map(is_number, names)) > len(names) / 2:
        raise ValueError(f"line {line} holds values, {', '.join(names[:3])} …. The first line must name the columns")
    if missing and names and names[0].startswith("#"):
        raise ValueError(f"line {line} starts with '#'. Remove comments. The first line must name the columns")
    if missing and len(names) == 1 and re.search(r"\S\s+\S", names[0]):
        raise ValueError(f"line {line} names one column, {names[0][:60]!r}. The first line must name the columns, with commas between them")
