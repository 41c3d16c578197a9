"""A table next to images that lie in one folder: the file of each image, and its class."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vat.data.files.names import UNKNOWN, composed, name_of, refuse_measured
from vat.data.files.rows import opened_csv

LABELS = "labels.csv"
COLUMNS = ("label", "class")  # what the column of the classes may be called if there are more than two


def read_labels(path: Path, files: Sequence[str]) -> dict[str, str]:
    """The class of each image by name; none of those without a label.

    Of two columns one holds the files, by path from the folder or by name, with or without the suffix. Of more columns the one of the
    classes is called label or class.

    Args:
        path: The CSV file.
        files: Paths of the images from their folder, with slashes.

    Raises:
        ValueError: If a column cannot be told, or a row names no image, several, or one that another row gives another class.
    """
    known = _by_name(files)
    labels: dict[str, str] = {}
    at: dict[str, int] = {}
    try:
        with opened_csv(path) as (names, rows):
            lines = list(rows)
            file, label = _columns(names, lines, known)
            for line, fields in lines:
                found = known.get(composed(fields[file]).removeprefix("./"), ())
                if len(found) != 1:
                    which = f"several images, {found[0]} and {found[1]}" if found else "no image of the folder"
                    raise ValueError(f"line {line} names {fields[file]!r}, which is {which}")
                (image,) = found
                name = name_of(fields[label], f"line {line}, column {names[label]!r},")
                if labels.get(image, name) != name:
                    raise ValueError(f"line {at[image]} gives {image} the class {labels[image]!r}, line {line} {name!r}")
                labels[image], at[image] = name, line
            refuse_measured(labels.values(), names[label])
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    return {image: name for image, name in labels.items() if name != UNKNOWN}


def _by_name(files: Sequence[str]) -> dict[str, list[str]]:
    """The images that each way to name them stands for."""
    known: dict[str, list[str]] = {}
    for file in files:
        path = PurePosixPath(composed(file))
        for name in dict.fromkeys((str(path), str(path.with_suffix("")), path.name, path.stem)):
            known.setdefault(name, []).append(file)
    return known


def _columns(names: Sequence[str], lines: Sequence[tuple[int, list[str]]], known: dict[str, list[str]]) -> tuple[int, int]:
    """The numbers of the columns of files and of classes."""
    if len(names) < 2 or not lines:
        raise ValueError("it must have two columns with names, of files and of classes, and a row for each image")
    hits = [sum(composed(fields[k]).removeprefix("./") in known for _, fields in lines) for k in range(len(names))]
    file = max(range(len(names)), key=lambda k: hits[k])
    if not hits[file]:
        raise ValueError(f"no column of {', '.join(names)} names images of the folder, as {next(iter(known), 'none')!r}")
    others = [k for k in range(len(names)) if k != file]
    called = [k for k in others if names[k].casefold() in COLUMNS]
    if len(others) > 1 and len(called) != 1:
        raise ValueError(f"it must be clear which of {', '.join(names[k] for k in others)} holds the classes: call that column label")
    return file, (called or others)[0]
