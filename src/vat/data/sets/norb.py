"""Small NORB, stereo pairs of toys: https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/, in its "binary matrix" format."""

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vat.data.files.content import Content, opened
from vat.data.files.download import PublishedFile, fetch
from vat.data.sets.labels import checked_labels
from vat.data.sets.published import Examples, PublishedImages

BYTES, INTEGERS = 0x1E3D4C55, 0x1E3D4C54
SIZE = 96  # pixels along each side of a published image
NUM_EXAMPLES = 24_300  # of the training set, and of the test set
NUM_INSTANCES = 10  # toys of each kind, five in each set
PAIRS_AT_A_TIME = 100


def read_images(path: Path, *, size: int, most: int, digest: str | None = None) -> Tensor:
    """Read the stereo pairs of a "dat" file, and reduce them by averaging squares of pixels.

    Args:
        path: The file, compressed or not.
        size: Pixels along each side after the reduction, a divisor of 96.
        most: Number of pairs in the published file.
        digest: MD5 or SHA-256 of the decompressed content, required of a file with `most` pairs.

    Returns:
        uint8 of shape (N, 2, size, size), 1 <= N <= most.

    Raises:
        ValueError: If the file is anything else.
    """
    pair = (2, SIZE, SIZE)
    with opened(path, digest) as content:
        count = _count(content, BYTES, pair, most)
        reduced = []
        for start in range(0, count, PAIRS_AT_A_TIME):
            number = min(PAIRS_AT_A_TIME, count - start)
            pairs = torch.frombuffer(content.take(number * math.prod(pair)), dtype=torch.uint8).view(number, *pair)
            reduced.append(F.avg_pool2d(pairs.float(), SIZE // size).round().byte() if size < SIZE else pairs)
        content.end(published=count == most)
    return torch.cat(reduced)


def read_integers(path: Path, shape: Sequence[int], *, most: int, digest: str | None = None) -> Tensor:
    """Read the integers of a "cat" or "info" file.

    Args:
        path: The file, compressed or not.
        shape: Shape of one entry: () for categories, (4,) for the instance, elevation, azimuth and lighting.
        most: Number of entries in the published file.
        digest: As for `read_images`.

    Returns:
        int32 of shape (N, *shape), 1 <= N <= most.

    Raises:
        ValueError: If the file is anything else.
    """
    with opened(path, digest) as content:
        count = _count(content, INTEGERS, shape, most)
        values = content.take(4 * count * math.prod(shape))
        content.end(published=count == most)
    return torch.frombuffer(values, dtype=torch.int32).view(count, *shape)


def _count(content: Content, kind: int, shape: Sequence[int], most: int) -> int:
    """The number of entries. The header has at least three dimensions; unused ones are 1."""
    ndim = 1 + len(shape)
    expected = [kind, ndim, *shape, *[1] * (3 - ndim)]
    magic, found_ndim, count, *rest = struct.unpack(f"<{len(expected) + 1}I", content.take(4 * len(expected) + 4))
    if [magic, found_ndim, *rest] != expected or not 1 <= count <= most:
        raise content.fault(
            f"must hold 1 to {most} entries of shape {tuple(shape)} and type {kind:#x}, "
            f"got a header with {found_ndim} dimensions, {(count, *rest)}, type {magic:#x}"
        )
    return count


def _file(part: str, kind: str, digest: str, content: str) -> PublishedFile:
    name = f"smallnorb-{part}-{kind}.mat.gz"
    return PublishedFile(
        name, [f"https://{host}/~ylclab/data/norb-v1.0-small/{name}" for host in ("cs.nyu.edu", "www.cs.nyu.edu")], digest, content
    )


# Images, categories and information. The MD5 of the .gz and of its content are the same in several independent loaders.
TRAIN, TEST = (
    tuple(_file(part, kind, *md5) for kind, md5 in files.items())
    for part, files in {
        "5x46789x9x18x6x2x96x96-training": {
            "dat": ("66054832f9accfe74a0f4c36a75bc0a2", "8138a0902307b32dfa0025a36dfa45ec"),
            "cat": ("23c8b86101fbf0904a000b43d3ed2fd9", "fd5120d3f770ad57ebe620eb61a0b633"),
            "info": ("51dee1210a742582ff607dfd94e332e3", "19faee774120001fc7e17980d6960451"),
        },
        "5x01235x9x18x6x2x96x96-testing": {
            "dat": ("e4ad715691ed5a3a5f138751a4ceb071", "e9920b7f7b2869a8f1a12e945b2c166c"),
            "cat": ("5aa791cd7e6016cf957ce9bdb93b8603", "fd5120d3f770ad57ebe620eb61a0b633"),
            "info": ("a9454f3864d7fd4bb3ea7fc3eb84924e", "7c5b871cc69dcadec1bf6a18141f5edc"),
        },
    }.items()
)


class NORB(PublishedImages):
    """48,600 stereo pairs (2, 32, 32) of five kinds of toys: 23,300 in the pool, 1,000 for validation, 24,300 for the test.

    The test set shows other toys than the training set, each in 972 views. By default the validation part shows the toys of the pool.
    With `validation_instance` it shows toys that are not in the pool, like the test set.

    Files: the dat, cat and info file of each set, compressed or not, in `norb/` of the data folder. `mean` and `std` are None: they
    were not measured.

    Args:
        size: Pixels along each side, a divisor of 96. DSVAT uses 32, by averaging 3 × 3 pixels.
        validation_instance: Toy of each kind whose examples are held out instead of `num_validation`: 4, 6, 7, 8 or 9.
        options: Other arguments of `PublishedImages`. Its errors apply too.
    """

    num_published = NUM_EXAMPLES, NUM_EXAMPLES
    lds_eps = 1.0

    def __init__(
        self,
        *,
        size: int = 32,
        num_labeled: int | None = 1000,
        num_validation: int = 1000,
        validation_instance: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_labeled=num_labeled, num_validation=num_validation, **options)
        if size < 1 or SIZE % size:
            raise ValueError(f"size must be a divisor of {SIZE}, such as 32, 48 or 96, got {size}")
        self.size = size
        self.validation_instance = validation_instance
        self.class_names = ["animal", "human", "airplane", "truck", "car"]

    def read(self) -> Sequence[Examples]:
        """Images and categories. Keeps the instances of the training set for `hold_out`."""
        x, y, self.instances = self._part(TRAIN)
        x_test, y_test, _ = self._part(TEST)
        return [(x, y), (x_test, y_test)]

    def hold_out(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the pool and of the validation part."""
        if self.validation_instance is None:
            return super().hold_out(y)
        held_out = self.instances == self.validation_instance
        if not held_out.any() or held_out.all():
            found = self.instances.unique().tolist()
            raise ValueError(f"validation_instance must be one of the training set's toys {found}, got {self.validation_instance}")
        return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()

    def _part(self, files: Sequence[PublishedFile]) -> tuple[Tensor, Tensor, Tensor]:
        """Images, categories and instances."""
        images, categories, information = ((fetch(file, self.data_dir / "norb"), file.content) for file in files)
        x = read_images(images[0], size=self.size, most=NUM_EXAMPLES, digest=images[1])
        y = read_integers(categories[0], (), most=NUM_EXAMPLES, digest=categories[1])
        about = read_integers(information[0], (4,), most=NUM_EXAMPLES, digest=information[1])
        instances = checked_labels(about[:, 0], len(x), NUM_INSTANCES, str(information[0]))
        return x, checked_labels(y, len(x), len(self.class_names), str(categories[0])), instances
