"""A user's own arrays or table: features or images, and labels of some of them."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vat.data.files.names import UNKNOWN, ignoring, is_number
from vat.data.files.tables import NOT_KNOWN, Table, parquet_files, read_table
from vat.data.own.base import OwnData, channel_moments, numbered, refuse_labels_as_groups, says_unlabeled
from vat.data.own.leaks import determining_the_class, is_total, numbers_the_rows
from vat.data.splits import Split
from vat.files import as_path

STD_OF_CONSTANT = 1e30
"""A feature that is constant in training is then 0 in all later data, too. Nothing was learnt about its other values."""
MISSING = NOT_KNOWN | {
    "?",
    ".",
    "nat",
    "unknown",
    "inf",
    "-inf",
    "+inf",
    "infinity",
    "-infinity",
}  # as R, pandas, SQL, ARFF, Excel write it

MOST_NAMED = 8  # columns in a warning
STAND_INS = {99, 999, 9999, *(2**bits - 1 for bits in (8, 16, 32, 64))}  # for no label; the latter are -1 as an unsigned number


class Arrays(OwnData):
    """Examples from a .npz or a CSV file, or from a Parquet file or folder if pyarrow is installed.

    `vat.data.files.tables.read_table` says how.

    Arrays of four dimensions are images. Their one to four channels come first, (N, C, H, W), or last, (N, H, W, C). Bytes of three
    dimensions, (N, H, W), are images too. Anything else is features. Bytes are scaled to [0, 1]. The classes are the labels that occur,
    in numerical or alphabetical order, unless the file holds `class_names`.

    Args:
        train: The file.
        label: Name of the labels.
        group: Name of the groups. None means that every example is a group.
        ignore: Columns of a table that are no features.
        standardize: Whether to shift and scale by mean and standard deviation over the pool. Constants are only shifted. Features are
            standardised one by one when they are loaded. Images are standardised by channel in the network's first layer, so ε stays in
            the units of the file.
        options: As in `OwnData`.

    Raises:
        FileNotFoundError: In `setup`, if there is no such file.
        ValueError: In `setup`, if a file is not as described, the two do not fit each other, or as in `OwnData`.
    """

    def __init__(
        self,
        *,
        train: str,
        label: str = "y",
        group: str | None = None,
        ignore: Sequence[str] = (),
        standardize: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.train = as_path(train, "data.train")
        self.label, self.group, self.ignore = label, group, ignore
        self.standardize = standardize

    @property
    def files(self) -> Sequence[Path]:
        """See `OwnData`."""
        named = [path for path in (self.train, self.test) if path is not None]
        return [file for path in named for file in (parquet_files(path) if path.is_dir() else [path])]

    def load(self) -> tuple[Tensor, Tensor, Split]:
        """Inputs, labels and parts. The examples of `test` come last."""
        refuse_labels_as_groups(self.label, self.group)
        table = read_table(self.train, label=self.label, group=self.group, ignore=self.ignore)
        self.class_names = table.class_names or classes_of(table.labels, self.train)
        self.warn_of_lookalikes()
        x, y = self._examples(self.train, table)
        groups, num_test = table.groups, 0
        if self.test is not None:
            if os.path.realpath(self.test) == os.path.realpath(self.train):
                raise ValueError(
                    f"data.test={self.test} is data.train too. Leave it out to cut a test part from data.train, or name another file"
                )
            held_out = read_table(self.test, label=self.label, group=self.group, features=table.columns)
            self._refuse_unfitting(self.test, held_out, table)
            test_x, test_y = self._examples(self.test, held_out)
            if (given := _described(test_x)) != (expected := _described(x)):
                raise ValueError(f"{self.test} must hold inputs like those of {self.train}, {expected}, got {given}")
            x, y, num_test = torch.cat([x, test_x]), torch.cat([y, test_y]), len(test_y)
            groups = None if groups is None else groups + (held_out.groups or [])
        split = self.cut(y, groups=None if groups is None else numbered(groups), num_test=num_test, unlabeled_as=table.unlabeled)
        self._warn_of_leaks(table, y[: len(table.x)])
        self.unit = "pixels in [0, 1]" if x.dtype == torch.uint8 else "units of the data file"
        self.bounds = (0.0, 1.0) if x.dtype == torch.uint8 else None
        if x.ndim == 4 and x.dtype != torch.uint8 and x.min() >= 0 and 2 < x.max() <= 255:
            warnings.warn(
                f"{self.train}: images are floats from {x.min():g} to {x.max():g}, and are not scaled. ε is in these units. To have "
                "pixels in [0, 1], save them as bytes (uint8), or divide by 255",
                stacklevel=2,
            )
        if self.standardize and x.ndim == 4:
            self.mean, self.std = channel_moments(x, split.unlabeled, seed=self.split_seed)
        elif self.standardize:
            mean, std = _moments(x, split.unlabeled) if self.given is None else self._given_moments(x)
            x = (x - mean) / std  # in float64: float32 has only 700 numbers for the seconds of a day since 1970
            self.preparation = {"mean": mean.tolist(), "std": std.tolist()}
            self.unit = "standard deviations of each feature"
        if table.columns is not None:
            self.preparation = {**(self.preparation or {}), "columns": table.columns}
        x = x if x.dtype == torch.uint8 else x.float()
        self.warn_of_copies(x, split)
        return x, y, split

    def _examples(self, path: Path, table: Table) -> tuple[Tensor, Tensor]:
        """Inputs, images with their channels first, and labels as numbers."""
        number = {UNKNOWN: -1} | {name: c for c, name in enumerate(self.class_names)}
        for row, name in enumerate(table.labels):
            if name not in number:
                raise ValueError(f"{path}: {table.place(row)} has the label {name!r}. The classes are {', '.join(self.class_names)}")
        x = torch.from_numpy(table.x)
        if x.ndim == 4:
            x = _channels_first(x, path)
        elif x.dtype == torch.uint8:
            x = x.unsqueeze(1)
        return x, torch.tensor([number[name] for name in table.labels])

    def _given_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the training, not of these data."""
        given = self.given or {}
        mean, std = (torch.tensor(given.get(key, default), dtype=torch.float64) for key, default in (("mean", 0.0), ("std", 1.0)))
        if mean.ndim and mean.shape != x.shape[1:]:
            raise ValueError(f"{self.train} must hold inputs of shape {tuple(mean.shape)}, as in training, got {tuple(x.shape[1:])}")
        return mean, std

    def _warn_of_leaks(self, table: Table, y: Tensor) -> None:
        """Warn of features that number the rows, and of those that determine the class."""
        if table.x.ndim != 2:
            return
        if is_total(table.x):
            place = table.place(len(table.x) - 1)
            warnings.warn(
                f"{self.train}: {place} holds the sums or means of the rows above it. If it is no example, remove it", stacklevel=2
            )
        names = table.columns or [f"x[:, {k}]" for k in range(table.x.shape[1])]
        known = (y >= 0).numpy()
        numbering = [k for k, name in enumerate(names) if numbers_the_rows(table.x[:, k], name)]
        groups = None if table.groups is None else [group for group, row in zip(table.groups, known, strict=True) if row]
        determining = [k for k in determining_the_class(table.x[known], y.numpy()[known], groups) if k not in numbering]
        them = "it" if len(determining) == 1 else "them"
        for columns, said in (
            (numbering, "to number the rows. A feature that does may predict the class in this file alone, for example if rows are sorted"),
            (determining, f"to be the label in another form: the class of all {known.sum()} labelled rows follows from {them}"),
        ):
            if columns:
                shown = [names[k] for k in columns[:MOST_NAMED]]
                more = f" and {len(columns) - len(shown)} more" if len(columns) > len(shown) else ""
                remedy = "leave it out of x" if table.columns is None else f"add {ignoring(shown)}"
                warnings.warn(
                    f"{self.train}: {', '.join(map(repr, shown))}{more} seem{'s' * (len(columns) == 1)} {said}. If so, {remedy}",
                    stacklevel=2,
                )

    def _refuse_unfitting(self, path: Path, table: Table, train: Table) -> None:
        """Refuse test examples without a label, with other classes, or of a group that is in the training examples too."""
        if UNKNOWN in table.labels:
            raise ValueError(f"{path}: test examples must be labelled. {table.place(table.labels.index(UNKNOWN))} is not")
        if table.class_names is not None and table.class_names != self.class_names:
            raise ValueError(f"{path} must have the class_names of {self.train}, {self.class_names}, got {table.class_names}")
        shared = sorted({*(table.groups or ())} & {*(train.groups or ())})
        if shared:
            raise ValueError(f"{path} and {self.train} both have examples of {self.group} {shared[0]}. Keep it in one of them")


def _described(x: Tensor) -> str:
    return f"{'bytes' if x.dtype == torch.uint8 else 'numbers'} of shape {tuple(x.shape[1:])}"


def classes_of(labels: list[str], path: Path) -> list[str]:
    """The classes that occur, in numerical or alphabetical order.

    Raises:
        ValueError: If one of them means that there is no label.
    """
    found = {*labels} - {UNKNOWN}
    missing = {name for name in found if name.casefold() in MISSING}
    if lookalikes := sorted(missing if all(map(is_number, found - missing)) else filter(says_unlabeled, found)):
        raise ValueError(
            f"{path}: {lookalikes[0]} would be a class of that name. If the examples have no label, leave it empty, or write -1"
        )
    numbers = sorted(int(name) for name in found if name.isdecimal())
    if len(numbers) > 2 and numbers[-1] in STAND_INS and 2 * numbers[-2] < numbers[-1]:
        missing.add(str(numbers[-1]))
    if missing:
        warnings.warn(
            f"{path}: {', '.join(sorted(missing))} is a class of that name. If the examples have no label, leave it empty, or write -1",
            stacklevel=2,
        )
    if all(name.isdecimal() for name in found):
        return sorted(found, key=lambda name: (len(name), name))  # 2 before 10
    return sorted(found)


def _channels_first(x: Tensor, path: Path) -> Tensor:
    first, last = x.shape[1] <= 4, x.shape[3] <= 4
    if first == last:
        raise ValueError(
            f"{path}: x must be images of 1 to 4 channels, (N, C, H, W) or (N, H, W, C), with more than 4 pixels a side, got shape "
            f"{tuple(x.shape)}. Flatten it to (N, D) if it holds features"
        )
    return x if first else x.permute(0, 3, 1, 2).contiguous()


def _moments(x: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each position over the pool. The latter is `STD_OF_CONSTANT` for constants."""
    known = x[pool].double()
    constant = known.amin(0) == known.amax(0)  # not std == 0, which rounding misses
    std = known.std(0, correction=0).where(~constant, STD_OF_CONSTANT)
    return known.mean(0), std
