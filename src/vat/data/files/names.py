"""How a label, a group or a column is read, whatever the file: one spelling for one name."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

UNKNOWN = ""
UNLABELED = (UNKNOWN, "-1", "nan", "NaN")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")  # line breaks and tabs, of which a terminal makes other lines
EDGES = " \ufeff\u200b\u2060"  # a blank, and three characters without a width


def name_of(value: object, what: str) -> str:
    """A label or group by name, or `UNKNOWN`.

    Bytes are UTF-8. Blanks around a name are removed, and Unicode is brought to its composed form (NFC). A whole number has no `.0`, which
    missing values bring with them.

    Args:
        value: As a file or a data set holds it.
        what: What an error calls it.

    Raises:
        ValueError: If it is no name: a negative number other than −1, bytes that are not UTF-8, or several values.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            value = bytes(value).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{what} holds {bytes(value)!r}, which is not UTF-8: save it as text") from error
    if isinstance(value, list | tuple | dict | set | np.ndarray):
        raise ValueError(f"{what} must hold one name or number in each row; it holds {value!r}")
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # those of pandas
        return UNKNOWN
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    name = re.sub(r"^[-\u2212]?([0-9]+)(\.0+)?$", lambda found: "-" * (found[0][0] in "-\u2212") + found[1], composed(str(value)))
    if name in UNLABELED:
        return UNKNOWN
    if re.fullmatch(r"-[0-9]+", name):
        raise ValueError(f"{what} must be >= 0, or -1 where it is not known; it holds {name}")
    return name


def names_of(values: Iterable[object], what: str) -> tuple[list[str], Counter[str]]:
    """Labels or groups by name, as `name_of` reads each, and how often each spelling of none occurs: "-1", "empty" or "NaN"."""
    names, spellings, read = [], Counter[str](), {}
    for value in values:
        name = read.get(value) if isinstance(value, str) else None  # few names occur often
        if name is None:
            name = name_of(value, what)
            if isinstance(value, str):
                read[value] = name
        names.append(name)
        if name == UNKNOWN:
            spellings[_spelling(value)] += 1
    return names, spellings


def _spelling(value: object) -> str:
    """How a value says that there is no label: "-1", "empty" or "NaN"."""
    text = (bytes(value).decode() if isinstance(value, bytes | bytearray | memoryview) else str(value)).strip()
    return "-1" if text.startswith(("-1", "\u22121")) else "NaN" if text else "empty"


def composed(name: str) -> str:
    """A name in one line, without the blanks around it, its letters composed (NFC): é is one character, however it was typed."""
    return CONTROL.sub(" ", unicodedata.normalize("NFC", name)).strip().strip(EDGES)


def lookalikes(names: Sequence[str]) -> list[str]:
    """The first names that readers take for one, as 01 and 1, or names that differ in case, blanks or the form of characters alone."""
    alike: dict[str, list[str]] = {}
    for name in names:
        shown = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")  # which have no width
        alike.setdefault(" ".join(shown.casefold().split()).lstrip("0"), []).append(name)
    return next((group for group in alike.values() if len(group) > 1), [])


def refuse_measured(labels: Iterable[str], what: str) -> None:
    """Refuse labels that are numbers and not all whole: those are measurements, each of which would be a class.

    Raises:
        ValueError: If they are.
    """
    broken = [label for label in set(labels) if re.search(r"\D", label)]
    if broken and all(map(is_number, broken)):
        raise ValueError(f"{what} holds {min(broken)}: a class is a whole number or a name, not something measured")


def is_number(label: str) -> bool:
    """Whether a label is written as a finite number."""
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False
