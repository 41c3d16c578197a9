"""Reads a table next to images in one folder: the file of each image, and its class."""

import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vat.data.files.names import UNKNOWN, composed, name_of, refuse_measured
from vat.data.files.rows import opened_csv

LABELS = "labels.csv"
FILES = ("file", "filename", "path", "image", "name", "id")  # names of a column, also if an image is called so
COLUMNS = ("label", "class")  # names of the classes' column if there are more than two columns


def read_labels(path: Path, files: Sequence[str]) -> dict[str, str]:
    """The class of each labelled image, by name.

    One column holds the files, as paths from the folder or as names, with or without the suffix. With more than two columns, the column
    of the classes must be called label or class.

    Args:
        path: The CSV file.
        files: Paths of the images from their folder, with slashes.

    Raises:
        ValueError: If a column is not clear, or a row names no image, several, or one that has another class in another row.
    """
    known = _by_name(files)
    labels: dict[str, str] = {}
    at: dict[str, int] = {}
    try:
        with opened_csv(path) as (names, rows):
            lines = list(rows)
            file, label = _columns(names, lines, known)
            for line, fields in lines:
                found = _images(fields[file], known)
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


def overrules_folders(path: Path, files: Sequence[str]) -> bool:
    """Whether a table names other classes of images than their folders, which are then not classes. Warns if so, or if it names no image.

    Args:
        path: The CSV file.
        files: As for `read_labels`.
    """
    try:
        labels = read_labels(path, files)
    except ValueError:  # a table of something else
        labels = {}
    if other := [image for image, name in labels.items() if name != composed(PurePosixPath(image).parts[0])]:
        example = f"{other[0]} is of class {labels[other[0]]!r}"
        warnings.warn(f"the classes are those in {path}, not the folders next to it: {example}", stacklevel=2)
    elif not labels:
        warnings.warn(f"{path} is not used: the folders next to it are the classes", stacklevel=2)
    return bool(other)


def _by_name(files: Sequence[str]) -> dict[str, list[str]]:
    """The images by each of their possible names."""
    known: dict[str, list[str]] = {}
    for file in files:
        path = PurePosixPath(composed(file))
        for name in dict.fromkeys((str(path), str(path.with_suffix("")), path.name, path.stem)):
            known.setdefault(name, []).append(file)
    return known


def _images(field: str, known: dict[str, list[str]]) -> Sequence[str]:
    """The images that a field names. Windows writes paths with backslashes."""
    name = composed(field)
    return known.get(name) or known.get(name.replace("\\", "/").removeprefix("./")) or ()


def _columns(names: Sequence[str], lines: Sequence[tuple[int, list[str]]], known: dict[str, list[str]]) -> tuple[int, int]:
    """The numbers of the columns of files and of classes."""
    if len(names) < 2 or not lines:
        raise ValueError("it must have two named columns, of files and of classes, and a row for each image")
    hits = [sum(bool(_images(fields[k], known)) for _, fields in lines) for k in range(len(names))]
    called = [name.casefold() for name in names]
    file = max(range(len(names)), key=lambda k: (hits[k], called[k] in FILES, called[k] not in COLUMNS))  # labels may name images too
    if not hits[file]:
        raise ValueError(f"no column of {', '.join(names)} names images of the folder, such as {next(iter(known), 'none')!r}")
    if _images(names[file], known) and called[file] not in FILES:
        raise ValueError(f"line 1 names {names[file]!r}, an image. The first line must name the columns")
    others = [k for k in range(len(names)) if k != file]
    of_classes = [k for k in others if called[k] in COLUMNS]
    if len(others) > 1 and len(of_classes) != 1:
        raise ValueError(f"it is not clear which of {', '.join(names[k] for k in others)} holds the classes. Call that column label")
    return file, (of_classes or others)[0]
