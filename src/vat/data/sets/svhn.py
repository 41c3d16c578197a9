"""Street View House Numbers, cropped digits: http://ufldl.stanford.edu/housenumbers/."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vat.data.files.download import PublishedFile, fetch
from vat.data.files.matlab import read_matlab
from vat.data.sets.labels import checked_labels
from vat.data.sets.published import Examples, PublishedImages

PIXELS = 32 * 32 * 3
NUM_TRAIN, NUM_TEST, NUM_EXTRA = 73_257, 26_032, 531_131


def _file(name: str, digest: str) -> PublishedFile:
    return PublishedFile(name, [f"{scheme}://ufldl.stanford.edu/housenumbers/{name}" for scheme in ("http", "https")], digest)


TRAIN = _file("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373")
TEST = _file("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3")
EXTRA = _file("extra_32x32.mat", "a93ce644f1a588dc4d68dda5feec44a7")


def read_svhn(path: Path, *, most: int, digest: str | None = None) -> Examples:
    """Read the variables X, bytes (32, 32, 3, N), and y, labels 1..10 (N, 1). The label 10 means the digit 0.

    Args:
        path: A MATLAB 5 file.
        most: Number of examples in the published file.
        digest: Digest of the published file, required of a file with `most` examples.

    Returns:
        Images uint8 (N, 3, 32, 32), a view of X in the file's memory order, and labels int64 (N,), 0..9.

    Raises:
        ValueError: If the file is anything else.
    """
    arrays = read_matlab(path, {"X": most * PIXELS, "y": most}, digest=digest)
    images, labels = arrays["X"], arrays["y"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise ValueError(f"{path} must hold bytes of shape (32, 32, 3, N) under X, got {images.dtype} {images.shape}")
    if labels.ndim != 2 or labels.shape[1] != 1 or not np.isin(labels, range(1, 11)).all():
        raise ValueError(f"{path} must hold labels 1..10 of shape (N, 1) under y, got {labels.shape} from {labels.min()} to {labels.max()}")
    y = torch.from_numpy(labels[:, 0].astype(np.int64)) % 10
    return torch.from_numpy(images.transpose(3, 2, 0, 1)), checked_labels(y, images.shape[3], 10, str(path))


class SVHN(PublishedImages):
    """99,289 house-number digits (3, 32, 32): 68,257 in the pool, 5,000 for validation, 26,032 for the test.

    Files: `train_32x32.mat`, `test_32x32.mat` and, with `extra`, `extra_32x32.mat` in `svhn/` of the data folder. Digits are not mirrored.

    Args:
        extra: Whether to add the 531,131 easier examples of the extra set to the pool, 1.6 GB more. They are never labelled and never
            used for validation, so the labelled examples and the validation part stay the same.
        options: Other arguments of `PublishedImages`. Its errors apply too. The translation is that of TPAMI (arXiv 1704.03976).
    """

    lds_eps = 1.0
    # Commonly published to four digits: data.x[:73_257].double() / 255, .mean((0, 2, 3)), .std((0, 2, 3), correction=0).
    mean = 0.4377, 0.4438, 0.4728
    std = 0.1980, 0.2010, 0.1970

    def __init__(
        self,
        *,
        extra: bool = False,
        num_labeled: int | None = 1000,
        num_validation: int = 5000,
        translate: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(num_labeled=num_labeled, num_validation=num_validation, translate=translate, **options)
        self.files = (TRAIN, TEST, EXTRA) if extra else (TRAIN, TEST)
        self.num_published = (NUM_TRAIN, NUM_TEST, NUM_EXTRA)[: len(self.files)]
        self.class_names = [str(digit) for digit in range(10)]

    def read(self) -> Sequence[Examples]:
        """Images and labels from the .mat files."""
        return [
            read_svhn(fetch(file, self.data_dir / "svhn"), most=most, digest=file.digest)
            for file, most in zip(self.files, self.num_published, strict=True)
        ]
