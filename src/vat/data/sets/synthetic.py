"""The two synthetic sets of "Distributional Smoothing with Virtual Adversarial Training" (arXiv 1507.00677)."""

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from vat.data.datamodule import ResidentDataModule
from vat.data.splits import Split
from vat.seeds import stable_seed

NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 16, 200, 1000  # points of both classes together


def moons(num_per_class: int, generator: torch.Generator, *, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Draw two interlocking three-quarter circles of radius 1 in the plane.

    The centre of class 0 is (−0.5, 0.25), with angles uniform over 90°..360°. The centre of class 1 is (0.5, −0.25), with angles uniform
    over −90°..180°.

    Args:
        num_per_class: Number of points of each class.
        generator: Generator on the CPU.
        noise: Standard deviation of the Gaussian noise added to each coordinate.

    Returns:
        Points z of shape (2·num_per_class, 2) and labels int64, class 0 first.
    """
    labels = torch.arange(2).repeat_interleave(num_per_class)
    first_angle = torch.tensor([0.5 * math.pi, -0.5 * math.pi])[labels]
    centres = torch.tensor([[-0.5, 0.25], [0.5, -0.25]])[labels]
    angles = first_angle + 1.5 * math.pi * torch.rand(len(labels), generator=generator)
    z = centres + _on_unit_circle(angles)
    return z + noise * torch.randn(z.shape, generator=generator), labels


def circles(num_per_class: int, generator: torch.Generator, *, noise: float = 0.05) -> tuple[Tensor, Tensor]:
    """Draw two concentric circles in the plane, of radius 0.25 (class 0) and 1 (class 1), with uniform angles.

    Arguments and returns are those of `moons`.
    """
    labels = torch.arange(2).repeat_interleave(num_per_class)
    radii = torch.tensor([0.25, 1.0])[labels]
    angles = 2 * math.pi * torch.rand(len(labels), generator=generator)
    z = radii[:, None] * _on_unit_circle(angles)
    return z + noise * torch.randn(z.shape, generator=generator), labels


def embedding(generator: torch.Generator, *, dimensions: int = 100) -> Tensor:
    """Draw a plane in space: B of shape (2, dimensions) with orthonormal rows, so that z @ B keeps lengths.

    B is the transposed Q factor of a matrix with entries uniform over [0, 1). This fits the published draws.
    """
    return torch.linalg.qr(torch.rand(dimensions, 2, generator=generator)).Q.T.contiguous()


class _PlaneInSpace(ResidentDataModule):
    unit = "lengths in the plane, where the (outer) circle has radius 1; the embedding keeps lengths"
    lds_eps = 0.5  # DSVAT's monitor

    def __init__(self, *, batch_size_labeled: int = NUM_TRAIN, batch_size_unlabeled: int = NUM_TRAIN, **options: Any) -> None:
        super().__init__(batch_size_labeled=batch_size_labeled, batch_size_unlabeled=batch_size_unlabeled, **options)

    @abstractmethod
    def points(self, num_per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Points in the plane and their labels."""

    def load(self) -> tuple[Tensor, Tensor, Split]:
        """Draw training, validation and test points in this order, then the embedding."""
        self.class_names = ["class 0", "class 1"]
        generator = torch.Generator().manual_seed(stable_seed("plane in space", self.seed))
        sizes = NUM_TRAIN, NUM_VALIDATION, NUM_TEST
        draws = [self.points(size // 2, generator) for size in sizes]
        self.z, y = (torch.cat(tensors) for tensors in zip(*draws, strict=True))
        self.embedding = embedding(generator)
        train, validation, test = torch.arange(len(y)).split(sizes)
        return self.z @ self.embedding, y, self.divide(y, pool=train, validation=validation, test=test)


class Moons(_PlaneInSpace):
    """Two moons in 100 dimensions: 16 training points, by default all labelled, and 1,000 test points.

    Each `seed` draws other points and another plane. The spread of the test error between draws is as large as the effect of a
    regularizer, so compare on the same seeds. 200 points are drawn for validation, which the published sets do not have. So nothing is
    chosen on the test points. `num_labeled` does not count the validation labels.

    Arguments and errors are those of `ResidentDataModule`. A batch is the complete training set.

    Attributes:
        z: Points in the plane, shape (1216, 2), in the order of x = z @ embedding. Set by `setup`.
        embedding: B of shape (2, 100), with orthonormal rows. Set by `setup`.
    """

    def points(self, num_per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `moons`."""
        return moons(num_per_class, generator)


class Circles(_PlaneInSpace):
    """Two concentric circles in 100 dimensions. Numbers, seed, arguments and attributes are those of `Moons`."""

    def points(self, num_per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `circles`."""
        return circles(num_per_class, generator)


def _on_unit_circle(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()], dim=1)
