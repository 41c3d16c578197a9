"""CSV files, read once: a field belongs to the column whose name stands over it, or the file is refused."""

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vat.data.files.names import composed, is_number

Rows = Iterator[tuple[int, list[str]]]
"""Each row's line in the file, counted from 1, and its fields."""


@contextmanager
def opened_csv(path: Path, wanted: Sequence[str] = ()) -> Iterator[tuple[list[str], Rows]]:
    """The names of the columns, and the rows with a field for each of them. Empty lines are left out.

    Commas after the last column, in the header, the rows or both, are no column. A line `sep=,` in front of the header is left out.

    Args:
        path: The file, UTF-8.
        wanted: Names of columns that there must be.

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
                    f"its fields stand between {separator[0]!r}: save it with commas, and with points in place of decimal commas"
                )
            _refuse_without_header(names, line, wanted)
            yield names, _fitting(records, len(names))
    except UnicodeDecodeError as error:
        raise ValueError(f"{error}: save it as UTF-8") from error


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
        raise ValueError("it holds NUL characters, as UTF-16 does: save it as UTF-8")
    return text


def _fitting(records: Rows, number: int) -> Rows:
    for line, fields in records:
        if len(fields) != number and (len(fields) < number or any(map(str.strip, fields[number:]))):
            raise ValueError(
                f"line {line} has {len(fields)} fields, the header has {number}: give each column a name and each row a field for it; "
                + ("remove comments" if fields[0].startswith("#") else "put fields that hold commas in quotes")
            )
        yield line, fields


def _refuse_without_header(names: Sequence[str], line: int, wanted: Sequence[str]) -> None:
    """Refuse a first line that does not name the columns between commas, as far as it can be told."""
    missing = [name for name in wanted if name not in names]
    counted = list(map(str, range(len(names))))  # as pandas names columns that have no names
    if (missing or not wanted) and names and names != counted and sum(map(is_number, names)) > len(names) / 2:
        raise ValueError(f"line {line} holds values, {', '.join(names[:3])} …: the first line must name the columns")
    if missing and names and names[0].startswith("#"):
        raise ValueError(f"line {line} starts with '#': remove comments; the first line must name the columns")
    if missing and len(names) == 1 and re.search(r"\S\s+\S", names[0]):
        raise ValueError(f"line {line} names one column, {names[0][:60]!r}: the first line must name the columns, with commas between them")
