"""MNIST: http://yann.lecun.com/exdb/mnist/."""

from collections.abc import Sequence
from typing import Any

from vat.data.files.download import PublishedFile, fetch
from vat.data.files.idx import read_idx
from vat.data.sets.labels import checked_labels
from vat.data.sets.published import Examples, PublishedImages


def _file(name: str, digest: str, content: str) -> PublishedFile:
    mirrors = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    )
    return PublishedFile(name, [mirror + name for mirror in mirrors], digest, content)


TRAIN_IMAGES = _file(
    "train-images-idx3-ubyte.gz",
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
)
TRAIN_LABELS = _file(
    "train-labels-idx1-ubyte.gz",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
)
TEST_IMAGES = _file(
    "t10k-images-idx3-ubyte.gz",
    "9fb629c4189551a2d022fa330f9573f3",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
)
TEST_LABELS = _file(
    "t10k-labels-idx1-ubyte.gz",
    "ec29112dd5afa0611ce80d1b7f02629c",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)


class MNIST(PublishedImages):
    """70,000 handwritten digits (1, 28, 28): 59,000 in the pool, 1,000 for validation, 10,000 for the test.

    Files: the four idx files, compressed or not, in `mnist/` of the data folder. `mean` and `std` are None, because the papers do not
    standardise the pixels in [0, 1].

    Arguments and errors are those of `PublishedImages`.
    """

    num_published = 60_000, 10_000
    lds_eps = 2.0  # about the radius of DSVAT's supervised runs, 2.1

    def __init__(self, *, num_labeled: int | None = 100, num_validation: int = 1000, **options: Any) -> None:
        super().__init__(num_labeled=num_labeled, num_validation=num_validation, **options)
        self.class_names = [str(digit) for digit in range(10)]

    def read(self) -> Sequence[Examples]:
        """Images and labels from the idx files."""
        train, test = self.num_published
        return self._examples(TRAIN_IMAGES, TRAIN_LABELS, train), self._examples(TEST_IMAGES, TEST_LABELS, test)

    def _examples(self, images: PublishedFile, labels: PublishedFile, most: int) -> Examples:
        folder = self.data_dir / "mnist"
        x = read_idx(fetch(images, folder), (28, 28), most=most, digest=images.content)
        y = read_idx(path := fetch(labels, folder), (), most=most, digest=labels.content)
        return x.unsqueeze(1), checked_labels(y, len(x), 10, str(path))
