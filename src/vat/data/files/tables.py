"""Reads files of examples: .npz of NumPy, CSV, and Parquet by pyarrow. Unpickles nothing, and reads nothing larger than memory."""

import importlib.util
import math
import re
import zipfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vat.data.files.names import UNKNOWN, composed, ignoring, names_of, refuse_measured
from vat.data.files.npz import read_array, refuse_beyond_memory
from vat.data.files.rows import opened_csv

SUFFIXES = (".npz", ".csv", ".parquet")
NOT_KNOWN = {"", "na", "n/a", "#n/a", "#na", "<na>", "nan", "-nan", "none", "null"}  # missing values as R, pandas, SQL and Excel write them
TRUTH = {"true": 1.0, "false": 0.0}


class Table(NamedTuple):
    """The content of a file.

    Attributes:
        x: Inputs (N, ...). Bytes of three or four dimensions are images and stay uint8. Others are float32, or float64 if they may not
            fit into float32. All are finite, also as float32.
        labels: Class of each example by name, or `UNKNOWN`.
        groups: Group of each example by name. None without groups.
        columns: Names of the features, or None.
        class_names: Classes in their order. None if only the labels determine them.
        unlabeled: Number of each spelling of no label (`vat.data.files.names.names_of`).
        lines: Line of each example in a text file, counted from 1 for the header. None if rows are counted from 0.
        ids: What identifies each example, as it is written. None if no column was named.
    """

    x: np.ndarray
    labels: list[str]
    groups: list[str] | None
    columns: list[str] | None
    class_names: list[str] | None
    unlabeled: Mapping[str, int]
    lines: Sequence[int] | None = None
    ids: list[str] | None = None

    def place(self, row: int) -> str:
        """The place of an example in the file, for a user."""
        return f"row {row}" if self.lines is None else f"line {self.lines[row]}"


class Columns(NamedTuple):
    """The columns to read from a file.

    Attributes:
        label: Name of the labels, or None.
        group: Name of the groups, or None.
        ids: Name of the column that identifies an example, or None.
        features: Names of the features in their order. None for all other columns.
        ignore: Columns that are no features.
    """

    label: str | None
    group: str | None
    ids: str | None
    features: Sequence[str] | None
    ignore: Sequence[str]

    def of(self, present: Sequence[str]) -> list[str]:
        """The features among the columns that are present.

        Raises:
            ValueError: If a column is missing, occurs twice, or has no name.
        """
        wanted = {name: f"data.{key}= names it" for key, name in (("label", self.label), ("group", self.group)) if name is not None}
        wanted |= {} if self.ids is None else {self.ids: "id= names it"}
        wanted |= dict.fromkeys(self.ignore, "data.ignore= names it")
        wanted |= dict.fromkeys(self.features or (), "it is a feature in training")
        for name, reason in wanted.items():
            if name not in present:
                raise ValueError(f"it has no column {name!r} but {', '.join(map(repr, present))}; {reason}")
        used = wanted if self.features is not None else present
        if twice := [name for name in used if name and list(present).count(name) > 1]:
            raise ValueError(f"it has two columns called {twice[0]!r}: rename or remove one")
        if self.features is not None:
            return list(self.features)
        if "" in present:
            raise ValueError("it has a column without a name, which would be a feature. Name it, or remove it if it numbers the rows")
        left = [name for name in present if name not in (self.label, self.group, *self.ignore)]
        if not left:
            raise ValueError(f"it has no feature: {', '.join(map(repr, present))} are named by data.label, data.group or data.ignore")
        return left


def refuse_unreadable(path: Path) -> None:
    """Refuse a path that is neither a file nor a folder.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a device or a pipe.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    if not (path.is_file() or path.is_dir()):  # reading a device or a pipe may never end
        raise ValueError(f"{path} is a device or a pipe. Name a regular file")


def read_table(
    path: Path,
    *,
    label: str | None,
    group: str | None = None,
    ids: str | None = None,
    features: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
) -> Table:
    """Read the examples in a file.

    A .npz has the arrays `x`, `label` and `group`. A CSV file, a Parquet file or a folder of Parquet files has the two as columns, and the
    other columns are features, or only those in `features`, in this order. Without `label`, no example has a label.

    Labels and groups are whole numbers, also as floats, or strings. −1, an empty string and NaN mean no label. If a .npz holds
    `class_names`, a vector of strings, labels that are whole numbers count into it from 0.

    Args:
        path: The file.
        label: Name of the labels.
        group: Name of the groups.
        ids: Name of a table's column that identifies an example.
        features: Names of the features.
        ignore: Columns that are no features.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, lacks something or holds something else, or needs pyarrow, which is not installed.
    """
    refuse_unreadable(path)
    if path.is_dir() and not parquet_files(path):
        raise ValueError(f"{path} is a folder without Parquet files. Name a file. data=images data.dir={path} reads a folder of images")
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: its name must end in {', '.join(SUFFIXES)}")
    named = (name and composed(name) for name in (label, group, ids))
    columns = Columns(*named, features=features and [*map(composed, features)], ignore=[*map(composed, ignore)])
    with _faults(path):
        if path.is_dir() or path.suffix.lower() == ".parquet":
            table = _read_parquet(path, columns)
        elif path.suffix.lower() == ".csv":
            table = _read_csv(path, columns)
        else:
            table = _read_npz(path, label, group, ignore)
        table = table._replace(x=_inputs(table))
        lengths = {"x": len(table.x), label or "labels": len(table.labels)}
        if group is not None and table.groups is not None:
            lengths[group] = len(table.groups)
            if UNKNOWN in table.groups:
                raise ValueError(f"{table.place(table.groups.index(UNKNOWN))} is of no group. {group} must be known in every row")
        if len(set(lengths.values())) > 1:
            raise ValueError(f"its arrays must have the same length, got {lengths}")
    return table


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files in a folder and its subfolders, sorted. Names that start with a dot or `_` are a cluster's internal files."""
    inner = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in (".parquet", ".parq", ".pq"))
    return [folder / path for path in sorted(inner) if not any(part.startswith((".", "_")) for part in path.parts)]


def _inputs(table: Table) -> np.ndarray:
    x = table.x
    if x.size == 0 or x.ndim < 2:
        raise ValueError(f"x must hold examples with features, (N, ...), got shape {x.shape}")
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        return x
    x = x.astype(np.float32 if np.can_cast(x.dtype, np.float32) else np.float64, copy=False)
    with np.errstate(over="ignore"):  # overflow gives infinity, which is refused
        broken = np.flatnonzero(~np.isfinite(x.astype(np.float32, copy=False)).reshape(len(x), -1).all(axis=1))
    if len(broken):
        at = table.place(int(broken[0]))
        raise ValueError(f"{at} is the first of {len(broken)} with a feature that is NaN, infinite or beyond float32")
    return x


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zipfile, zlib, numpy and pyarrow raise a dozen types of errors for a damaged file
        raise ValueError(f"{path} cannot be used: {error or type(error).__name__}") from error


# ---------------------------------------------------------------------------------------------------------------- .npz


def _read_npz(path: Path, label: str | None, group: str | None, ignore: Sequence[str]) -> Table:
    if ignore:
        raise ValueError(f"data.ignore={list(ignore)} is for columns of a CSV or Parquet file. A .npz has arrays")
    with zipfile.ZipFile(path) as archive:
        arrays = [entry.removesuffix(".npy") for entry in archive.namelist()]
        for name, reason in {"x": "the inputs", label: "data.label= names it", group: "data.group= names it"}.items():
            if name is not None and name not in arrays:  # before the inputs are read, which may take minutes
                raise ValueError(f"it has no array {name!r} but {', '.join(arrays) or 'none'}: {reason}")
        x = read_array(archive, "x")
        if x.dtype.kind not in "biuf":
            raise ValueError(f"x must hold numbers, got {x.dtype}")
        if label is None:
            return Table(x, [UNKNOWN] * len(x), None, None, None, {})
        y = read_array(archive, label)
        labels, unlabeled = _names(y, label)
        groups = None if group is None else _names(read_array(archive, group), group)[0]
        if "class_names" not in arrays:
            return Table(x, labels, groups, None, None, unlabeled)
        class_names, _ = _names(read_array(archive, "class_names"), "class_names")
    if len(set(class_names)) < len(class_names) or UNKNOWN in class_names:
        raise ValueError(f"class_names must be distinct and not empty, got {class_names}")
    if y.dtype.kind not in "US":
        if (most := max((int(name) for name in labels if name), default=0)) >= len(class_names):
            raise ValueError(f"class_names must have a name for each {label} from 0 to {most}, got {class_names}")
        labels = [class_names[int(name)] if name else UNKNOWN for name in labels]
    return Table(x, labels, groups, None, class_names, unlabeled)


def _names(values: np.ndarray, name: str) -> tuple[list[str], Mapping[str, int]]:
    if values.ndim != 1 or values.dtype.kind not in "biufUS":
        one_hot = values.ndim == 2 and values.dtype.kind in "biuf" and bool((np.sort(values, 1) == [0] * (values.shape[1] - 1) + [1]).all())
        remedy = (
            f". Save {name}.argmax(1)" if one_hot and values.shape[1] > 1 else f". Save {name}.ravel()" if values.shape[1:] == (1,) else ""
        )
        raise ValueError(f"{name} must be a vector of whole numbers or strings, got {values.dtype} of shape {values.shape}{remedy}")
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    names = values.tolist()
    floats = names if values.dtype.kind == "f" else []  # whole numbers become floats if some are missing
    if broken := [value for value in floats if not (math.isnan(value) or value.is_integer())]:
        raise ValueError(f"{name} must be a vector of whole numbers or strings, got {broken[0]}")
    return names_of(names, name)


# ------------------------------------------------------------------------------------------------------ CSV and Parquet


def _read_csv(path: Path, columns: Columns) -> Table:
    named = (columns.label, columns.group, columns.ids)
    wanted = [name for name in (*named, *(columns.features or ())) if name is not None]
    with opened_csv(path, wanted) as (names, rows):
        features = columns.of(names)
        chosen = [names.index(name) for name in features]
        text = [None if name is None else names.index(name) for name in named]
        values, lines = array("d"), array("q")
        written: tuple[list[str], list[str], list[str]] = [], [], []
        for line, fields in rows:
            cells = [fields[k] for k in chosen]
            try:
                numbers = [] if "_" in "".join(cells) else [*map(float, cells)]  # Python reads 1_000 as a number
            except ValueError:
                numbers = []
            values.extend(numbers or [_number(cell, name, line) for cell, name in zip(cells, features, strict=True)])
            lines.append(line)
            for found, k in zip(written, text, strict=True):
                if k is not None:
                    found.append(fields[k])
    if not lines:
        raise ValueError("it has no rows")
    x = np.frombuffer(values, np.float64).reshape(len(lines), len(chosen))
    if (missing := np.argwhere(np.isnan(x))).size:
        row, k = missing[0].tolist()
        raise ValueError(f"column {features[k]!r} has missing values, the first in line {lines[row]}. Fill them, or remove such rows")
    return _table(x, features, columns, written, lines)


def _number(cell: str, name: str, line: int) -> float:
    """The value of a feature's field. NaN if it is empty or means that it is not known."""
    text = cell.strip().lower()
    if text in NOT_KNOWN:
        return math.nan
    try:
        if "_" not in text:
            return TRUTH[text] if text in TRUTH else float(text)
    except ValueError:
        pass
    raise ValueError(f"column {name!r} is not numeric ({cell!r} in line {line}). Encode it as numbers, or remove it by {ignoring([name])}")


def _table(
    x: np.ndarray,
    features: list[str],
    columns: Columns,
    written: tuple[Sequence[Any], Sequence[Any], Sequence[Any]],
    lines: Sequence[int] | None = None,
) -> Table:
    """A table of a CSV or Parquet file, from labels, groups and ids as they are written."""
    labels, groups, ids = written
    unlabeled: Mapping[str, int] = {}
    classes = [UNKNOWN] * len(x)
    if columns.label is not None:
        classes, unlabeled = names_of(labels, columns.label)
        refuse_measured(classes, columns.label)
    found = None if columns.group is None else names_of(groups, columns.group)[0]
    return Table(x, classes, found, features, None, unlabeled, lines, None if columns.ids is None else as_written(ids))


def as_written(values: Sequence[Any]) -> list[str]:
    """Values of a column as text. None is an empty one."""
    return ["" if value is None else str(value) for value in values]


def _read_parquet(path: Path, columns: Columns) -> Table:
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError("it needs pyarrow. Run: pip install pyarrow")
    import pyarrow as pa  # pyright: ignore[reportMissingImports]
    import pyarrow.dataset as ds  # pyright: ignore[reportMissingImports]  # optional: a .npz or CSV does not need it
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]
    import pyarrow.types as types  # pyright: ignore[reportMissingImports]

    files = parquet_files(path) if path.is_dir() else [path]
    metadata = [pq.read_metadata(file) for file in files]
    refuse_beyond_memory(sum(8 * part.num_rows * part.num_columns for part in metadata), "it")
    schemas = [part.schema.to_arrow_schema() for part in metadata]
    if twice := [name for name in schemas[0].names if schemas[0].names.count(name) > 1]:
        raise ValueError(f"it has two columns called {twice[0]!r}: rename or remove one")
    if other := [file for file, schema in zip(files, schemas, strict=True) if {*schema.names} != {*schemas[0].names}]:
        raise ValueError(f"{other[0]} must have the same columns as {files[0]}")
    base = str(path) if path.is_dir() else None  # subfolders called column=value are a column
    data = ds.dataset([*map(str, files)], format="parquet", partitioning="hive" if base else None, partition_base_dir=base)
    # The index of pandas comes first. If it has consecutive numbers, it is not a column but a note in the metadata.
    notes = (schemas[0].pandas_metadata or {}).get("index_columns", ())
    counted = {note["name"]: note for note in notes if isinstance(note, dict) and note["name"] is not None and len(files) == 1}
    index = [*counted, *(note for note in notes if isinstance(note, str))]
    present = [*index, *(name for name in data.schema.names if name not in index)]
    present = [name for name in present if not re.fullmatch(r"__index_level_\d+__", name)]
    features = columns.of([*map(composed, present)])
    original = {composed(name): name for name in present}
    used = [original[name] for name in dict.fromkeys([*features, columns.label, columns.group, columns.ids]) if name is not None]
    content = data.to_table([name for name in used if name not in counted])
    for name in counted.keys() & {*used}:
        note = counted[name]
        content = content.append_column(name, pa.array(range(note["start"], note["stop"], note["step"])))
    if not content.num_rows:
        raise ValueError("it has no rows")
    x = np.empty((content.num_rows, len(features)))
    for k, name in enumerate(features):
        column = content.column(original[name])
        if types.is_decimal(column.type):
            column = column.cast(pa.float64())
        if not (types.is_integer(column.type) or types.is_floating(column.type) or types.is_boolean(column.type)):
            raise ValueError(f"column {name!r} is not numeric ({column.type}). Encode it as numbers, or remove it by {ignoring([name])}")
        x[:, k] = column.to_numpy()
        if (missing := np.flatnonzero(np.isnan(x[:, k]))).size:
            raise ValueError(f"column {name!r} has missing values, the first in row {missing[0]}. Fill them, or remove such rows")
    labels, groups, ids = (
        [] if name is None else content.column(original[name]).to_pylist() for name in (columns.label, columns.group, columns.ids)
    )
    return _table(x, features, columns, (labels, groups, ids))
