"""Reads the names of labels, groups and columns in all files alike, with one spelling for one name."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

UNKNOWN = ""
UNLABELED = (UNKNOWN, "-1", "nan", "NaN")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")  # such as line breaks and tabs, which change lines in a terminal
EDGES = " \ufeff\u200b\u2060"  # a blank, and three characters without width


def name_of(value: object, what: str) -> str:
    """A label or group by name, or `UNKNOWN`.

    Bytes are UTF-8. Blanks around a name are removed, and Unicode is converted to its composed form (NFC). `.0` after a whole number is
    removed, because a column with missing values has floats.

    Args:
        value: Value in a file or a data set.
        what: Name of the value in errors.

    Raises:
        ValueError: If it is no name: a negative number other than −1, bytes that are not UTF-8, or several values.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            value = bytes(value).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{what} holds {bytes(value)!r}, which is not UTF-8. Save it as text") from error
    if isinstance(value, list | tuple | dict | set | np.ndarray):
        raise ValueError(f"{what} must hold one name or number in each row, got {value!r}")
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # of pandas
        return UNKNOWN
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = composed(str(value))
    if re.fullmatch(r"[-+]?[0-9]\.[0-9]+e[-+][0-9]{2,3}", text) and float(text).is_integer():  # as NumPy writes tables
        text = str(int(float(text)))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} holds {text!a}, which is not UTF-8. Save it as text") from error
    name = re.sub(r"^[-\u2212]?([0-9]+)(\.0+)?$", lambda found: "-" * (found[0][0] in "-\u2212") + found[1], text)
    if name in UNLABELED:
        return UNKNOWN
    if re.fullmatch(r"-[0-9]+", name):
        raise ValueError(f"{what} must be >= 0, or -1 if it is not known, got {name}")
    return name


def names_of(values: Iterable[object], what: str) -> tuple[list[str], Counter[str]]:
    """Labels or groups by name, as by `name_of`, and the number of each spelling of none: "-1", "empty" or "NaN"."""
    names, spellings, read = [], Counter[str](), {}
    for value in values:
        name = read.get(value) if isinstance(value, str) else None  # a few names occur often
        if name is None:
            name = name_of(value, what)
            if isinstance(value, str):
                read[value] = name
        names.append(name)
        if name == UNKNOWN:
            spellings[_spelling(value)] += 1
    return names, spellings


def _spelling(value: object) -> str:
    """The spelling of a value that means no label: "-1", "empty" or "NaN"."""
    text = (bytes(value).decode() if isinstance(value, bytes | bytearray | memoryview) else str(value)).strip()
    return "-1" if text.startswith(("-1", "\u22121")) else "NaN" if text else "empty"


def composed(name: str) -> str:
    """A name in one line, without blanks around it, with composed letters (NFC): é is always one character."""
    return CONTROL.sub(" ", unicodedata.normalize("NFC", name)).strip().strip(EDGES)


def ignoring(names: Sequence[str]) -> str:
    """The setting that ignores these columns, with the quotes that a shell and Hydra need."""
    plain = all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name) for name in names)
    listed = ",".join(names if plain else ("'" + name.replace("'", "\\'") + "'" for name in names))
    return f"data.ignore=[{listed}]" if plain else f'"data.ignore=[{listed}]"'


def lookalikes(names: Sequence[str]) -> list[str]:
    """The first names that look the same to a reader: 01 and 1, or names that differ only in case, blanks or form of characters."""
    alike: dict[str, list[str]] = {}
    for name in names:
        shown = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")  # Cf: characters without width
        alike.setdefault(" ".join(shown.casefold().split()).lstrip("0"), []).append(name)
    return next((group for group in alike.values() if len(group) > 1), [])


def refuse_measured(labels: Iterable[str], what: str) -> None:
    """Refuse labels that are numbers but not all whole. They are measurements, and each would be a class.

    Raises:
        ValueError: If the labels are such numbers.
    """
    broken = [label for label in set(labels) if re.search(r"\D", label)]
    if broken and all(map(is_number, broken)):
        raise ValueError(f"{what} must hold whole numbers or names as classes, not measurements, got {min(broken)}")


def is_number(label: str) -> bool:
    """Whether a label is written as a finite number."""
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False
