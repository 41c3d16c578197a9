"""A user's own torch Datasets: labelled, unlabelled, for validation, for the test."""

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vat.data.loader import Inputs
from vat.data.own.base import OwnData, channel_moments
from vat.data.splits import Split

CLASS_LABEL = "a whole number from 0, or -1 for none"


class Datasets(OwnData):
    """Examples of map-style Datasets: (x, y) with labels, x or (x, anything) without.

    All inputs are tensors or arrays of one shape and type. Bytes are images (C, H, W) or features, and are scaled to [0, 1]. Other numbers
    become float32. Labels are whole numbers from 0. A data set must give the same example for the same number. Augment by `translate` and
    `flip`, or in your module.

    Inputs that fit into `resident_gib` are read once and stay on the training device. Otherwise each is read when it is needed, and
    `setup` reads the data sets with labels once, for the labels. The batches are bit-identical.

    Args:
        labeled: Dataset of examples with labels. Parts that are not given are cut from it.
        unlabeled: Dataset of examples for the pool only, or None.
        validation: Dataset of examples for validation.
        test: Dataset of examples for the test.
        class_names: Names of the classes. None uses their numbers.
        unit: Unit of a perturbation, unless inputs are bytes.
        resident_gib: Largest size of inputs in memory, in GiB.
        options: As in `OwnData`.

    Raises:
        ValueError: In `setup`, if the data sets are not as described, or as in `OwnData`.
    """

    def __init__(
        self,
        *,
        labeled: Any,
        unlabeled: Any = None,
        validation: Any = None,
        test: Any = None,
        class_names: Sequence[str] | None = None,
        unit: str = "units of the data sets",
        resident_gib: float = 2.0,
        **options: Any,
    ) -> None:
        super().__init__(test=test, **options)
        self.parts = {"labeled": labeled, "unlabeled": unlabeled, "validation": validation, "test": test}
        self.parts = {name: part for name, part in self.parts.items() if part is not None}
        self.names, self.unit, self.resident_gib = class_names, unit, resident_gib

    def load(self) -> tuple[Inputs, Tensor, Split]:
        """Inputs, resident or read at each access, in the order of the arguments."""
        for name, part in self.parts.items():
            if not (hasattr(part, "__len__") and hasattr(part, "__getitem__")):
                raise ValueError(f"{name} must be a map-style Dataset, with a length, got {type(part).__name__}")
            if not len(part):
                raise ValueError(f"{name} is empty. Leave it out, or fill it")
        rows = DatasetRows(self.parts)
        x: Inputs = rows
        resident = math.prod(rows.shape) * rows.dtype.itemsize <= self.resident_gib * 2**30
        if resident:
            x = torch.empty(rows.shape, dtype=rows.dtype)
        y = torch.full((len(rows),), -1)
        for row in range(len(rows)):
            name, number, _ = rows.place(row)
            if name == "unlabeled" and not resident:
                continue
            item = rows.item(row)
            if isinstance(x, Tensor):
                x[row] = rows.input(item, row)
            if name != "unlabeled":
                y[row] = _label(item, f"{name}[{number}]")
                if name in ("validation", "test") and y[row] < 0:
                    raise ValueError(f"{name}[{number}] has no label. Remove this example")
        num_classes = max(int(y.max()) + 1, 1)
        self.class_names = list(map(str, range(num_classes))) if self.names is None else list(self.names)
        if num_classes > len(self.class_names):
            raise ValueError(f"class_names must have a name for each label from 0 to {num_classes - 1}, got {self.class_names}")
        self.warn_of_lookalikes()
        sizes = {name: len(part) for name, part in self.parts.items()}
        number = int((y[: sizes["labeled"]] < 0).sum())
        unlabeled_as = {"-1": number, "in unlabeled": sizes.get("unlabeled", 0)}
        split = self.cut(
            y,
            num_validation=sizes.get("validation", 0),
            num_test=sizes.get("test", 0),
            unlabeled_as={spelling: count for spelling, count in unlabeled_as.items() if count},
        )
        if rows.dtype == torch.uint8:
            self.unit, self.bounds = "pixels in [0, 1]", (0.0, 1.0)
            if len(rows.shape) == 4:
                self.mean, self.std = channel_moments(x, split.unlabeled, seed=self.split_seed)
        self.warn_of_copies(x, split)
        return x, y, split


class DatasetRows:
    """Inputs of several concatenated Datasets, read at each access: `vat.data.loader.Streamed`.

    Args:
        parts: The Datasets by name.
        device: Device of the returned inputs.

    Raises:
        ValueError: If the first example is no tensor, or differs when it is read again.
    """

    def __init__(self, parts: dict[str, Any], *, device: torch.device | None = None) -> None:
        self.parts, self.device = parts, device or torch.device("cpu")
        self._ends = list(itertools.accumulate(map(len, parts.values())))
        first = _tensor(_first(self.item(0)), "labeled[0]")
        if not torch.equal(first, _tensor(_first(self.item(0)), "labeled[0]")):
            raise ValueError("labeled[0] differs when it is read again. Remove random augmentation from the data set")
        self.dtype, self._shape = first.dtype, tuple(first.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return len(self), *self._shape

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Inputs of these rows, (B, ...)."""
        return torch.stack([self.input(self.item(row), row) for row in rows.tolist()]).to(self.device)

    def to(self, device: torch.device) -> "DatasetRows":
        """The same inputs, returned on another device."""
        return self if device == self.device else DatasetRows(self.parts, device=device)

    def place(self, row: int) -> tuple[str, int, Any]:
        """The name of a row's Dataset, its number there, and the Dataset."""
        k = bisect.bisect_right(self._ends, row)
        name = list(self.parts)[k]
        return name, row - (self._ends[k] - len(self.parts[name])), self.parts[name]

    def item(self, row: int) -> Any:
        """A row's item in its Dataset."""
        _, number, part = self.place(row)
        return part[number]

    def input(self, item: Any, row: int) -> Tensor:
        """The input of a row's item.

        Raises:
            ValueError: If its shape or type differs from the first, or it is not finite.
        """
        name, number, _ = self.place(row)
        x = _tensor(_first(item), f"{name}[{number}]")
        if x.shape != self._shape or x.dtype != self.dtype:
            expected = f"{self.dtype} of shape {self._shape} like labeled[0]"
            raise ValueError(f"{name}[{number}] must be {expected}, got {x.dtype} of shape {tuple(x.shape)}")
        if x.is_floating_point() and not torch.isfinite(x).all():
            raise ValueError(f"{name}[{number}] has NaN or infinity. Repair or remove it")
        return x


def _first(item: Any) -> Any:
    return item[0] if isinstance(item, tuple | list) and item else item


def _tensor(x: Any, name: str) -> Tensor:
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(x)
    if not isinstance(x, Tensor) or x.is_complex() or not x.ndim:
        found = f"a tensor of {x.dtype}, shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be (x, y) or x, where x is a tensor or an array of numbers, got {found}")
    return x if x.dtype == torch.uint8 else x.float()


def _label(item: Any, name: str) -> int:
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise ValueError(f"{name} must be (x, y), got {type(item).__name__}")
    y = item[1]
    if isinstance(y, Tensor | np.generic | np.ndarray) and math.prod(y.shape) == 1:
        y = y.item()
    if isinstance(y, bool) or not isinstance(y, int) or y < -1:
        raise ValueError(f"the label of {name} must be {CLASS_LABEL}, got {str(y)[:60]}")
    return y
