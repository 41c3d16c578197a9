"""Files of examples: .npz of NumPy, CSV, and Parquet through pyarrow. Nothing is unpickled, and nothing larger than memory is begun."""

import importlib.util
import math
import os
import re
import warnings
import zipfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vat.data.files.names import UNKNOWN, composed, names_of, refuse_measured
from vat.data.files.rows import opened_csv

SUFFIXES = (".npz", ".csv", ".parquet")
LARGEST_DEFLATION = 1032  # bytes that one compressed byte can stand for; a zip that claims more is made up
SMALLEST_DEFLATED = 64  # bytes, below which the end of the stream counts for too much
NOT_KNOWN = {"", "na", "n/a", "#n/a", "#na", "<na>", "nan", "-nan", "none", "null"}  # a feature, as R, pandas, SQL and Excel write it
TRUTH = {"true": 1.0, "false": 0.0}


class Table(NamedTuple):
    """What a file holds.

    Attributes:
        x: Inputs (N, ...): uint8 where the file has bytes of three or four dimensions, images; otherwise float32, or float64 where the file
            has numbers that may not fit into it; all finite, in float32 too.
        labels: The class of each example by name, or `UNKNOWN`.
        groups: The group of each example by name; None where no group was asked for.
        columns: The names of the features; None where they have none.
        class_names: The classes in their order; None where the labels alone tell.
        unlabeled: How often each spelling of no label occurs (`vat.data.files.names.names_of`).
        lines: Each example's line in a text file, from 1 for the header; None where rows are counted from 0.
    """

    x: np.ndarray
    labels: list[str]
    groups: list[str] | None
    columns: list[str] | None
    class_names: list[str] | None
    unlabeled: Mapping[str, int]
    lines: Sequence[int] | None = None

    def place(self, row: int) -> str:
        """Where an example is in the file, as a user finds it there."""
        return f"row {row}" if self.lines is None else f"line {self.lines[row]}"


class Columns(NamedTuple):
    """What is wanted of a file.

    Attributes:
        label: Name of the labels; None if none is known.
        group: Name of the groups; None if none are wanted.
        features: Names of the features in their order; None for all other columns.
        ignore: Columns that are no features. Those that are absent are refused, unless `lenient`.
        lenient: See `ignore`.
    """

    label: str | None
    group: str | None
    features: Sequence[str] | None
    ignore: Sequence[str]
    lenient: bool

    def of(self, present: Sequence[str]) -> list[str]:
        """The features among the columns that are present.

        Raises:
            ValueError: If a column is missing, occurs twice, or has no name.
        """
        wanted = {name: f"data.{key}= names it" for key, name in (("label", self.label), ("group", self.group)) if name is not None}
        wanted |= {} if self.lenient else dict.fromkeys(self.ignore, "data.ignore= names it")
        wanted |= dict.fromkeys(self.features or (), "the network was trained on it")
        for name, reason in wanted.items():
            if name not in present:
                raise ValueError(f"it has no column {name!r} but {', '.join(map(repr, present))}; {reason}")
        used = wanted if self.features is not None else present
        if twice := [name for name in used if name and list(present).count(name) > 1]:
            raise ValueError(f"it has two columns called {twice[0]!r}: rename or remove one")
        if self.features is not None:
            return list(self.features)
        if "" in present:
            raise ValueError("it has a column without a name: remove it if it numbers the rows, or it would be a feature")
        return [name for name in present if name not in (self.label, self.group, *self.ignore)]


def refuse_unreadable(path: Path) -> None:
    """Refuse what is neither a file nor a folder.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a device or a pipe.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    if not (path.is_file() or path.is_dir()):  # from a device or a pipe one would read for ever
        raise ValueError(f"{path} is a device or a pipe: name a regular file")


def read_table(
    path: Path,
    *,
    label: str | None,
    group: str | None,
    features: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    lenient: bool = False,
) -> Table:
    """The examples in a file: of a .npz the arrays `x`, `label` and `group`; of a CSV file, a Parquet file or a folder of Parquet files
    these two columns, and the others as features, or those that `features` names in its order. Without a `label` none is known.

    Labels and groups are whole numbers, as floats too, or strings. A label is unknown where it is −1, an empty string, or NaN.
    Where a .npz holds `class_names`, a vector of strings, labels that are whole numbers count into it from 0.

    Args:
        path: The file.
        label: Name of the labels.
        group: Name of the groups.
        features: Names of the features.
        ignore: Columns that are no features.
        lenient: Columns to ignore may be absent.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, lacks something or holds something else, or pyarrow is needed and not installed.
    """
    refuse_unreadable(path)
    if path.is_dir() and not parquet_files(path):
        raise ValueError(f"{path} is a folder without Parquet files: name a file; data=images data.dir={path} reads a folder of images")
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: its name must end in {', '.join(SUFFIXES)}")
    columns = Columns(
        label and composed(label), group and composed(group), features and [*map(composed, features)], [*map(composed, ignore)], lenient
    )
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
                raise ValueError(f"{table.place(table.groups.index(UNKNOWN))} is of no group: {group} must be known in every row")
        if len(set(lengths.values())) > 1:
            raise ValueError(f"its arrays must be equally long; got {lengths}")
        if table.columns and features is None:
            for k, name in enumerate(table.columns):
                if _numbers_the_rows(table.x[:, k]):
                    warnings.warn(
                        f"{path}: column {name!r} numbers the rows and is taken as a feature: remove it if it says nothing", stacklevel=2
                    )
    return table


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files in a folder and those within, sorted; what starts with a dot or `_` is a cluster's own."""
    inner = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in (".parquet", ".parq", ".pq"))
    return [folder / path for path in sorted(inner) if not any(part.startswith((".", "_")) for part in path.parts)]


def _inputs(table: Table) -> np.ndarray:
    x = table.x
    if x.size == 0 or x.ndim < 2:
        raise ValueError(f"x must hold examples with features, (N, ...); its shape is {x.shape}")
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        return x
    x = x.astype(np.float32 if np.can_cast(x.dtype, np.float32) else np.float64, copy=False)
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        broken = np.flatnonzero(~np.isfinite(x.astype(np.float32, copy=False)).reshape(len(x), -1).all(axis=1))
    if len(broken):
        at = table.place(int(broken[0]))
        raise ValueError(f"{at} is the first of {len(broken)} with a feature that is NaN, infinite or beyond float32")
    return x


def _numbers_the_rows(values: np.ndarray) -> bool:
    first = float(values[0])
    return len(values) > 2 and first.is_integer() and abs(first) < 2**53 and np.array_equal(values, first + np.arange(len(values)))


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zipfile, zlib, numpy and pyarrow have a dozen ways to say that a file is damaged
        raise ValueError(f"{path} cannot be used: {error or type(error).__name__}") from error


def _refuse_beyond_memory(size: int, name: str) -> None:
    if not hasattr(os, "sysconf"):  # Windows, where an array beyond memory ends in Python's MemoryError
        return
    if size > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise ValueError(f"{name} takes {size} bytes; this machine has {memory} in all")


# ---------------------------------------------------------------------------------------------------------------- .npz


def _read_npz(path: Path, label: str | None, group: str | None, ignore: Sequence[str]) -> Table:
    if ignore:
        raise ValueError(f"data.ignore={list(ignore)} is for the columns of a CSV or Parquet file; this one has arrays")
    with zipfile.ZipFile(path) as archive:
        arrays = [entry.removesuffix(".npy") for entry in archive.namelist()]
        for name, reason in {"x": "the inputs", label: "data.label= names it", group: "data.group= names it"}.items():
            if name is not None and name not in arrays:  # before the inputs are read, which may take minutes
                raise ValueError(f"it holds no array {name!r} but {', '.join(arrays) or 'none'}; {reason}")
        x = _member(archive, "x")
        if x.dtype.kind not in "biuf":
            raise ValueError(f"x must hold numbers; its type is {x.dtype}")
        if label is None:
            return Table(x, [UNKNOWN] * len(x), None, None, None, {})
        y = _member(archive, label)
        labels, unlabeled = _names(y, label)
        groups = None if group is None else _names(_member(archive, group), group)[0]
        if "class_names" not in arrays:
            return Table(x, labels, groups, None, None, unlabeled)
        class_names, _ = _names(_member(archive, "class_names"), "class_names")
    if len(set(class_names)) < len(class_names) or UNKNOWN in class_names:
        raise ValueError(f"class_names must be distinct and not empty; got {class_names}")
    if y.dtype.kind not in "US":
        if (most := max((int(name) for name in labels if name), default=0)) >= len(class_names):
            raise ValueError(f"{label} counts to {most}, for which class_names, {class_names}, are too few")
        labels = [class_names[int(name)] if name else UNKNOWN for name in labels]
    return Table(x, labels, groups, None, class_names, unlabeled)


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array, whose size in the zip's directory, in its own header and in the file must go together before anything is allocated."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in a way that np.savez does not know")
    if info.file_size > LARGEST_DEFLATION * max(info.compress_size, SMALLEST_DEFLATED):
        raise ValueError(f"{name} claims {info.file_size} bytes, which {info.compress_size} compressed bytes cannot hold")
    _refuse_beyond_memory(info.file_size, name)
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} has the format {version}, which is for structured types")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(stream)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, which would have to be unpickled: save numbers or strings")
        if min(shape, default=0) < 0 or stream.tell() + size != info.file_size:
            raise ValueError(f"{name} claims the shape {shape} of {dtype}, which its {info.file_size} bytes do not hold")
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _names(values: np.ndarray, name: str) -> tuple[list[str], Mapping[str, int]]:
    if values.ndim != 1 or values.dtype.kind not in "biufUS":
        remedy = f": save {name}.ravel()" if values.shape[1:] == (1,) else ""
        raise ValueError(f"{name} must be a vector of whole numbers or strings; it is {values.dtype} of shape {values.shape}{remedy}")
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    names = values.tolist()
    floats = names if values.dtype.kind == "f" else []  # which whole numbers become where some are missing
    if broken := [value for value in floats if not (math.isnan(value) or value.is_integer())]:
        raise ValueError(f"{name} must be a vector of whole numbers or strings; it holds {broken[0]}")
    return names_of(names, name)


# ------------------------------------------------------------------------------------------------------ CSV and Parquet


def _read_csv(path: Path, columns: Columns) -> Table:
    wanted = [name for name in (columns.label, columns.group, *(columns.features or ())) if name is not None]
    with opened_csv(path, wanted) as (names, rows):
        features = columns.of(names)
        chosen = [names.index(name) for name in features]
        text = [None if name is None else names.index(name) for name in (columns.label, columns.group)]
        values, lines = array("d"), array("q")
        written: tuple[list[str], list[str]] = [], []
        for line, fields in rows:
            cells = [fields[k] for k in chosen]
            try:
                numbers = [] if "_" in "".join(cells) else [*map(float, cells)]  # to Python 1_000 is a number
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
        raise ValueError(f"column {features[k]!r} has missing values, the first in line {lines[row]}: fill them")
    return _table(x, features, columns, *written, lines)


def _number(cell: str, name: str, line: int) -> float:
    """What a field of a feature stands for; NaN if it is empty or says that it is not known."""
    text = cell.strip().lower()
    if text in NOT_KNOWN:
        return math.nan
    try:
        if "_" not in text:
            return TRUTH[text] if text in TRUTH else float(text)
    except ValueError:
        pass
    raise ValueError(
        f"column {name!r} is not numeric ({cell!r} in line {line}): encode it as numbers, or remove it by data.ignore=[{name}]"
    )


def _table(
    x: np.ndarray, features: list[str], columns: Columns, labels: Sequence[Any], groups: Sequence[Any], lines: Sequence[int] | None = None
) -> Table:
    """A table of a CSV or Parquet file, its labels and groups as they are written."""
    unlabeled: Mapping[str, int] = {}
    classes = [UNKNOWN] * len(x)
    if columns.label is not None:
        classes, unlabeled = names_of(labels, columns.label)
        refuse_measured(classes, columns.label)
    found = None if columns.group is None else names_of(groups, columns.group)[0]
    return Table(x, classes, found, features, None, unlabeled, lines)


def _read_parquet(path: Path, columns: Columns) -> Table:
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError("it takes pyarrow to read, not installed here: pip install pyarrow")
    import pyarrow as pa  # pyright: ignore[reportMissingImports]
    import pyarrow.dataset as ds  # pyright: ignore[reportMissingImports]  # not required, nor for those who have a .npz or CSV
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]
    import pyarrow.types as types  # pyright: ignore[reportMissingImports]

    files = parquet_files(path) if path.is_dir() else [path]
    metadata = [pq.read_metadata(file) for file in files]
    _refuse_beyond_memory(sum(8 * part.num_rows * part.num_columns for part in metadata), "it")
    schemas = [part.schema.to_arrow_schema() for part in metadata]
    if twice := [name for name in schemas[0].names if schemas[0].names.count(name) > 1]:
        raise ValueError(f"it has two columns called {twice[0]!r}: rename or remove one")
    if other := [file for file, schema in zip(files, schemas, strict=True) if {*schema.names} != {*schemas[0].names}]:
        raise ValueError(f"{other[0]} has other columns than {files[0]}")
    base = str(path) if path.is_dir() else None  # folders called column=value within it are a column
    data = ds.dataset([*map(str, files)], format="parquet", partitioning="hive" if base else None, partition_base_dir=base)
    # What pandas kept as an index comes first, of which consecutive numbers are no column but a note.
    notes = (schemas[0].pandas_metadata or {}).get("index_columns", ())
    counted = {note["name"]: note for note in notes if isinstance(note, dict) and note["name"] is not None and len(files) == 1}
    index = [*counted, *(note for note in notes if isinstance(note, str))]
    present = [*index, *(name for name in data.schema.names if name not in index)]
    present = [name for name in present if not re.fullmatch(r"__index_level_\d+__", name)]
    features = columns.of([*map(composed, present)])
    original = {composed(name): name for name in present}
    used = [original[name] for name in dict.fromkeys([*features, columns.label, columns.group]) if name is not None]
    content = data.to_table([name for name in used if name not in counted])
    for name in counted.keys() & {*used}:
        note = counted[name]
        content = content.append_column(name, pa.array(range(note["start"], note["stop"], note["step"])))
    if not content.num_rows:
        raise ValueError("it has no rows")
    x = np.empty((content.num_rows, len(features)))
    for k, name in enumerate(features):
        column = content.column(original[name])
        if not (types.is_integer(column.type) or types.is_floating(column.type) or types.is_boolean(column.type)):
            raise ValueError(f"column {name!r} is not numeric ({column.type}): encode it as numbers, or remove it by data.ignore=[{name}]")
        x[:, k] = column.to_numpy()
        if (missing := np.flatnonzero(np.isnan(x[:, k]))).size:
            raise ValueError(f"column {name!r} has missing values, the first in row {missing[0]}: fill them")
    labels, groups = ([] if name is None else content.column(original[name]).to_pylist() for name in (columns.label, columns.group))
    return _table(x, features, columns, labels, groups)
