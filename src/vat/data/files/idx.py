"""The idx format of MNIST: http://yann.lecun.com/exdb/mnist/, "The IDX file format"."""

import math
import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vat.data.files.content import opened

UNSIGNED_BYTE = 0x08


def read_idx(path: Path, shape: Sequence[int], *, most: int, digest: str | None = None) -> Tensor:
    """Read the entries of an idx file of unsigned bytes, which may be gzip-compressed.

    Args:
        path: The file.
        shape: Shape of one entry: (28, 28) for images, () for labels.
        most: Number of entries of the published file.
        digest: MD5 or SHA-256 of the decompressed published content. It is required of a file with that many entries.

    Returns:
        uint8 of shape (N, *shape), 1 <= N <= most.

    Raises:
        ValueError: If the file is anything else.
    """
    with opened(path, digest) as content:
        magic, count, *found = struct.unpack(f">{2 + len(shape)}I", content.take(8 + 4 * len(shape)))
        expected = UNSIGNED_BYTE << 8 | 1 + len(shape)
        if magic != expected:
            raise content.fault(
                f"is no idx file of bytes in {1 + len(shape)} dimensions: its magic number must be {expected:#010x}, got {magic:#010x}"
            )
        if found != list(shape) or not 1 <= count <= most:
            raise content.fault(f"must hold 1 to {most} entries of shape {tuple(shape)}, got {count} of shape {tuple(found)} in its header")
        values = content.take(count * math.prod(shape))
        content.end(published=count == most)
    return torch.frombuffer(values, dtype=torch.uint8).view(count, *shape)
