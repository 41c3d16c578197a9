"""Common part of the published image sets: files, split, warnings."""

import os
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vat.data.datamodule import ResidentDataModule
from vat.data.splits import Split, stratified_parts
from vat.data.whiten import ZCA

Examples = tuple[Tensor, Tensor]  # images uint8 (N, C, H, W), labels int64 (N,)


class PublishedImages(ResidentDataModule):
    """Images published as a training and a test set, kept as bytes on the training device.

    The published test set is the test part. The validation part is `num_validation` examples of the published training set, stratified
    and fixed. The rest is the pool, which includes the labelled examples. `num_labeled` does not count the validation labels.

    A missing file is downloaded and checked against its published digest. An existing file is checked too. It must parse to its last
    byte. If it has the published size, its content must have the published digest, if that is known. A file with fewer examples than
    published is accepted with a warning.

    Args:
        data_dir: Folder of all data sets. None means the environment variable VAT_DATA_DIR, or `.data` if it is not set.
        num_validation: Number of validation examples.
        zca: Whether to whiten the images by the statistics of the pool. They are then float32, with mean 0 and variance 1 in every
            direction. ε is in these units, as `unit` tells.
        options: Arguments of `ResidentDataModule`.

    Raises:
        ValueError: If a file is damaged or the split is impossible, in `setup`.
        DownloadError: If a file is missing and cannot be downloaded, in `setup`.

    Attributes:
        num_published: Number of published examples of each set that `read` returns.
    """

    num_published: tuple[int, ...]
    unit = "pixels in [0, 1]"
    bounds = (0.0, 1.0)

    def __init__(self, *, num_validation: int, data_dir: str | None = None, zca: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.data_dir = Path(data_dir or os.environ.get("VAT_DATA_DIR") or ".data").expanduser()
        self.num_validation = num_validation
        self.zca = zca

    @abstractmethod
    def read(self) -> Sequence[Examples]:
        """The published training set, the test set and, optionally, examples for the pool that are never labelled."""

    def load(self) -> tuple[Tensor, Tensor, Split]:
        """Images as bytes and labels, in the order of `read`, and the split."""
        images, labels = zip(*self.read(), strict=True)
        sizes = tuple(map(len, labels))
        if sizes != self.num_published:
            warnings.warn(
                f"{self.data_dir} holds {_sum(sizes)} examples of {type(self).__name__} instead of the published "
                f"{_sum(self.num_published)}. Results are not comparable to those of the published set.",
                stacklevel=2,
            )
        _, test, *extra = torch.arange(sum(sizes)).split(sizes)
        pool, validation = self.hold_out(labels[0])
        y = torch.cat(labels)
        split = self.divide(y, pool=pool, validation=validation, test=test, extra=extra[0] if extra else None)
        x = torch.cat(images).contiguous()
        if self.zca:
            x = ZCA(x[split.unlabeled])(x)
            self.mean = self.std = self.bounds = None
            length = x[0].numel() ** 0.5
            self.unit = f"standard deviations of the whitened pixels, of which an image has about {length:.0f}"
            self.lds_eps = 0.18 * length  # TPAMI's 10 on CIFAR-10
        return x, y, split

    def hold_out(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the pool and of the validation part, from the labels of the published training set."""
        if not 1 <= self.num_validation < len(y):
            raise ValueError(f"num_validation must be from 1 to {len(y) - 1}, got {self.num_validation}")
        validation, pool = stratified_parts(y, (self.num_validation, len(y) - self.num_validation), seed=0)
        return pool, validation


def _sum(sizes: Sequence[int]) -> str:
    return " + ".join(map(str, sizes))
