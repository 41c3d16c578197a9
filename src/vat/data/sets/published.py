"""What the published image sets share: where their files lie, their parts, their warnings."""

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
    """Images published as a training and a test set, resident as bytes.

    The published test set is the test part. `num_validation` examples of the published training set, stratified and fixed, are for
    validation; the rest is the pool, in which the labelled examples stay. The validation labels are not counted in `num_labeled`.

    A file that is absent is downloaded and checked against its published digest. A file that is there is read as it is: it must parse
    to its last byte, and at the published size its content must have the published digest, where one is known. Fewer examples than
    published are taken, with a warning.

    Args:
        data_dir: Folder of all data sets; None takes the environment variable VAT_DATA_DIR, or `.data` where that is not set.
        num_validation: Validation examples.
        zca: Whiten the images, by the statistics of the pool. They are then float32, of mean 0 and variance 1 in every direction, and ε
            is in these units: `unit` says so.
        options: As in `ResidentDataModule`.

    Raises:
        ValueError: In `setup`, if a file or the split is not as it should be.
        DownloadError: In `setup`, if a file can neither be found nor downloaded.

    Attributes:
        num_published: Examples of each set that `read` returns, as published.
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
        """The published training set, the test set and, as far as there are any, examples for the pool that are never labelled."""

    def load(self) -> tuple[Tensor, Tensor, Split]:
        """Images as bytes and labels, in the order of `read`, and the parts."""
        images, labels = zip(*self.read(), strict=True)
        sizes = tuple(map(len, labels))
        if sizes != self.num_published:
            warnings.warn(
                f"{self.data_dir} holds {_sum(sizes)} examples of {type(self).__name__}, published are {_sum(self.num_published)}: "
                "results are not those of the published set",
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
            raise ValueError(f"num_validation must be between 1 and the {len(y)} training examples less one; got {self.num_validation}")
        validation, pool = stratified_parts(y, (self.num_validation, len(y) - self.num_validation), seed=0)
        return pool, validation


def _sum(sizes: Sequence[int]) -> str:
    return " + ".join(map(str, sizes))
