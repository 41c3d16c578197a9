"""Files of examples: .npz of NumPy, CSV and Parquet through pandas. Nothing is unpickled, and nothing larger than memory is begun."""

import importlib.util
import math
import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

UNKNOWN = ""
SUFFIXES = (".npz", ".csv", ".parquet")
LARGEST_DEFLATION = 1032  # bytes that one compressed byte can stand for; a zip that claims more is made up
SMALLEST_DEFLATED = 64  # bytes, below which the end of the stream counts for too much


class Table(NamedTuple):
    """What a file holds.

    Attributes:
        x: Inputs (N, ...): uint8 where the file has bytes of three or four dimensions, images; otherwise float32, or float64 where the file
            has numbers that may not fit into it; all finite, in float32 too.
        labels: The class of each example by name, or `UNKNOWN`.
        groups: The group of each example by name; None where no group was asked for.
        columns: The names of the features; None where they have none.
        class_names: The classes in their order; None where the labels alone tell.
    """

    x: np.ndarray
    labels: list[str]
    groups: list[str] | None
    columns: list[str] | None
    class_names: list[str] | None


def read_table(path: Path, *, label: str | None, group: str | None, features: Sequence[str] | None = None) -> Table:
    """The examples in a file: of a .npz the arrays `x`, `label` and `group`; of a CSV or Parquet file these two columns, and the others
    as features, or those that `features` names in its order. Without a `label` none is known.

    Labels and groups are whole numbers, as floats too, or strings. A label is unknown where it is −1, an empty string, or NaN.
    Where a .npz holds `class_names`, a vector of strings, labels that are whole numbers count into it from 0.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, lacks something or holds something else, or pandas is needed and not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: its name must end in {', '.join(SUFFIXES)}")
    read = _read_npz if path.suffix.lower() == ".npz" else _read_frame
    with _faults(path):
        table = read(path, label, group, features)
        x = _inputs(table.x)
        lengths = {"x": len(x), label or "labels": len(table.labels)}
        if group is not None and table.groups is not None:
            lengths[group] = len(table.groups)
            if UNKNOWN in table.groups:
                raise ValueError(f"row {table.groups.index(UNKNOWN)} is of no group: {group} must be known in every row")
        if len(set(lengths.values())) > 1:
            raise ValueError(f"its arrays must be equally long; got {lengths}")
        return table._replace(x=x)


def _inputs(x: np.ndarray) -> np.ndarray:
    if x.size == 0 or x.ndim < 2:
        raise ValueError(f"x must hold examples with features, (N, ...); its shape is {x.shape}")
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        return x
    x = x.astype(np.float32 if np.can_cast(x.dtype, np.float32) else np.float64, copy=False)
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        broken = np.flatnonzero(~np.isfinite(x.astype(np.float32, copy=False)).reshape(len(x), -1).all(axis=1))
    if len(broken):
        raise ValueError(f"row {broken[0]} is the first of {len(broken)} with a feature that is NaN, infinite or beyond float32")
    return x


def _known(value: str, name: str) -> str:
    """A label or group as written, of a whole number without the `.0` that missing values bring with them."""
    value = re.sub(r"^(-?\d+)\.0$", r"\1", value)
    if value in (UNKNOWN, "-1", "nan", "NaN"):
        return UNKNOWN
    if re.fullmatch(r"-\d+", value):
        raise ValueError(f"{name} must be >= 0, or -1 where it is not known; it holds {value}")
    return value


def is_number(label: str) -> bool:
    """Whether a label is written as a finite number."""
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zipfile, zlib, numpy, pandas and pyarrow have a dozen ways to say that a file is damaged
        raise ValueError(f"{path} cannot be used: {error or type(error).__name__}") from error


# ---------------------------------------------------------------------------------------------------------------- .npz


def _read_npz(path: Path, label: str | None, group: str | None, features: Sequence[str] | None) -> Table:
    with zipfile.ZipFile(path) as archive:
        x = _member(archive, "x")
        if x.dtype.kind not in "biuf":
            raise ValueError(f"x must hold numbers; its type is {x.dtype}")
        if label is None:
            return Table(x, [UNKNOWN] * len(x), None, None, None)
        y = _member(archive, label)
        labels = _names(y, label)
        groups = None if group is None else _names(_member(archive, group), group)
        if "class_names.npy" not in archive.namelist():
            return Table(x, labels, groups, None, None)
        class_names = _names(_member(archive, "class_names"), "class_names")
    if len(set(class_names)) < len(class_names) or UNKNOWN in class_names:
        raise ValueError(f"class_names must be distinct and not empty; got {class_names}")
    if y.dtype.kind != "U":
        if (most := max((int(name) for name in labels if name), default=0)) >= len(class_names):
            raise ValueError(f"{label} counts to {most}, for which class_names, {class_names}, are too few")
        labels = [class_names[int(name)] if name else UNKNOWN for name in labels]
    return Table(x, labels, groups, None, class_names)


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array, whose size in the zip's directory, in its own header and in the file must go together before anything is allocated."""
    arrays = [entry.removesuffix(".npy") for entry in archive.namelist()]
    if name not in arrays:
        raise ValueError(f"it holds no array {name!r} but {', '.join(arrays) or 'none'}")
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


def _names(values: np.ndarray, name: str) -> list[str]:
    if values.ndim != 1 or values.dtype.kind not in "biufU":
        remedy = f": save {name}.ravel()" if values.shape[1:] == (1,) else ""
        raise ValueError(f"{name} must be a vector of whole numbers or strings; it is {values.dtype} of shape {values.shape}{remedy}")
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    names = values.tolist()
    if values.dtype.kind == "f":  # which whole numbers become where some are missing
        if broken := [value for value in names if not (math.isnan(value) or value.is_integer())]:
            raise ValueError(f"{name} must be a vector of whole numbers or strings; it holds {broken[0]}")
        names = [UNKNOWN if math.isnan(value) else int(value) for value in names]
    return [_known(str(value), name) for value in names]


# ------------------------------------------------------------------------------------------------------ CSV and Parquet


def _read_frame(path: Path, label: str | None, group: str | None, features: Sequence[str] | None) -> Table:
    parquet = path.suffix.lower() == ".parquet"
    absent = [name for name in (("pandas", "pyarrow") if parquet else ("pandas",)) if importlib.util.find_spec(name) is None]
    if absent:
        raise ValueError(f"it takes {' and '.join(absent)} to read, not installed here: pip install {' '.join(absent)}")
    import pandas as pd  # pyright: ignore[reportMissingImports]  # not required, nor for those who have a .npz

    text = [name for name in (label, group) if name is not None]
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # that fields were dropped
        try:
            header = None if parquet else _header(path)
            frame = _read_parquet(path) if parquet else pd.read_csv(path, index_col=False, skipinitialspace=True)
        except UnicodeDecodeError as error:
            raise ValueError(f"{error}: save it as UTF-8") from error
    if frame.empty:
        raise ValueError("it has no rows")
    frame.columns = columns = [str(name) for name in frame.columns]  # a Parquet file's may be numbers
    header = header or columns
    used = set(header) if features is None else {*text, *(name for name in features if f"{name}.1" not in features)}
    if twice := sorted({name for name in used if name and header.count(name) > 1}):
        raise ValueError(f"it has two columns called {twice[0]!r}: rename or remove one")
    for name in [*text, *(features or ())]:
        if name not in columns:
            raise ValueError(f"it has no column {name!r} but {', '.join(map(repr, columns))}")
    # As they are written: pandas would take a class called None or NA for a missing value.
    as_written: Any = {"usecols": text, "dtype": str, "keep_default_na": False, "skipinitialspace": True}
    names = frame[text] if parquet or not text else pd.read_csv(path, **as_written)
    inputs: Any = frame.drop(columns=text) if features is None else frame[[*features]]
    for name in inputs.columns:
        column = inputs[name]
        if str(name).startswith("Unnamed: "):  # how pandas calls it
            raise ValueError("it has a column without a name: remove it if it numbers the rows, or it would be a feature")
        if not (pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column)):
            raise ValueError(f"column {name!r} is not numeric ({column.dtype}): encode it as numbers, or remove it")
        if column.isna().to_numpy().any():
            raise ValueError(f"column {name!r} has missing values, the first in row {int(column.isna().to_numpy().argmax())}: fill them")
        if features is None and _numbers_the_rows(column.to_numpy(dtype=np.float64)):
            warnings.warn(f"{path}: column {name!r} numbers the rows and is taken as a feature: remove it if it says nothing", stacklevel=2)
    x = inputs.to_numpy(dtype=np.float64)
    return Table(
        x if x.flags.writeable else x.copy(),
        [UNKNOWN] * len(inputs) if label is None else _classes(_column(names[label], label), label),
        None if group is None else _column(names[group], group),
        [str(name) for name in inputs.columns],
        None,
    )


def _header(path: Path) -> list[str]:
    """The names of the columns as they are written: pandas calls the second of two y, which may be the label once more, y.1."""
    import pandas as pd  # pyright: ignore[reportMissingImports]

    as_written: Any = {"header": None, "nrows": 1, "dtype": str, "keep_default_na": False, "skipinitialspace": True}
    header = pd.read_csv(path, **as_written).iloc[0].tolist()
    if len(header) == 1 and (separator := re.search(r"[;\t]|\|(?=.*\|)", header[0])):
        raise ValueError(f"its fields stand between {separator[0]!r}: save it with commas, and with points in place of decimal commas")
    return header


def _numbers_the_rows(values: np.ndarray) -> bool:
    first = float(values[0])
    return len(values) > 2 and first.is_integer() and np.array_equal(values, first + np.arange(len(values)))


def _read_parquet(path: Path) -> Any:
    import pandas as pd  # pyright: ignore[reportMissingImports]
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    metadata = pq.read_metadata(path)
    _refuse_beyond_memory(8 * metadata.num_rows * metadata.num_columns, "it")
    frame = pd.read_parquet(path, engine="pyarrow")
    named = [name for name in frame.index.names if name is not None]  # pandas keeps some of the columns apart
    return frame.reset_index(level=named) if named else frame


def _column(values: Any, name: str) -> list[str]:
    missing: Iterable[bool] = values.isna()
    return [UNKNOWN if gone else _known(str(value).strip(), name) for value, gone in zip(values, missing, strict=True)]


def _classes(labels: list[str], name: str) -> list[str]:
    """The labels, unless all are numbers and not all are whole: those are measurements, each of which would be a class."""
    broken = [label for label in set(labels) if re.search(r"\D", label)]
    if broken and all(map(is_number, broken)):
        raise ValueError(f"{name} holds {min(broken)}: a class is a whole number or a name, not something measured")
    return labels


def _refuse_beyond_memory(size: int, name: str) -> None:
    if not hasattr(os, "sysconf"):  # Windows, where an array beyond memory ends in Python's MemoryError
        return
    if size > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise ValueError(f"{name} takes {size} bytes; this machine has {memory} in all")
