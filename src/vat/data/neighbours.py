"""Distances between examples: what a radius of VAT is compared with, before any training."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vat.data.loader import Inputs, as_input
from vat.data.splits import evenly

GROUP, GROUPS = 16, 32
"""A nearest neighbour is looked for among so many examples, in so many groups: a radius must not shrink as a data set grows."""
SHARE = 0.3
"""Default radius as a share of the median distance to the nearest neighbour: see docs/choosing_eps.md."""
LABELED = 200
"""Labelled examples that are compared."""
CLOSE, CHANCE = 1.1, 0.4
"""Classes touch if the median distances to another class and to any class differ by a smaller factor, and if nearest neighbours tell
classes apart little better than chance: (accuracy - chance) / (1 - chance) is smaller."""


@dataclass(frozen=True)
class Neighbours:
    """Median distances to the nearest neighbour, in the units of the inputs.

    Args:
        nearest: Of an example to the nearest of a group of `GROUP` from the pool; NaN if all are equal.
        labeled: Of a labelled example to any other labelled one.
        other_class: Of a labelled example to the nearest of another class.
        accuracy: How often the nearest labelled example is of the same class.
        chance: How often it would be by chance.
        number: Labelled examples that were compared.
    """

    nearest: float
    labeled: float
    other_class: float
    accuracy: float
    chance: float
    number: int

    @property
    def default_eps(self) -> float:
        """The default radius ‖r‖₂, to three digits.

        Raises:
            ValueError: If all inputs are equal.
        """
        if math.isnan(self.nearest):
            raise ValueError("all inputs of the pool are equal: there is no distance between them to derive a radius from")
        return float(f"{SHARE * self.nearest:.3g}")

    @property
    def classes_touch(self) -> bool:
        """Whether the nearest labelled example of another class is as near as any, and says little of the class."""
        better = (self.accuracy - self.chance) / (1 - self.chance) if self.chance < 1 else 1.0
        return self.number >= 20 and self.other_class < CLOSE * self.labeled and better < CHANCE


def neighbours(x: Inputs, y: Tensor, *, labeled: Tensor, pool: Tensor) -> Neighbours:
    """Measure a data set.

    Args:
        x: Inputs (N, …).
        y: Labels (N,).
        labeled: Rows with labels.
        pool: Rows to train on.
    """
    sample = evenly(pool, GROUP * GROUPS)
    sample = sample[torch.randperm(len(sample), generator=torch.Generator().manual_seed(0))]  # neighbours in a file may be alike
    groups = [group for group in sample.split(GROUP) if len(group) == min(GROUP, len(sample))]
    medians = torch.tensor([_median(distances(_values(x, group))) for group in groups])
    some = evenly(labeled, LABELED)
    between, classes = distances(_values(x, some)), y[some.to(y.device)].cpu()
    same = classes[:, None] == classes[None]
    shares = torch.unique(classes, return_counts=True)[1].double() / max(len(classes), 1)
    accuracy = float(same.gather(1, between.argmin(1, keepdim=True)).double().mean()) if len(some) > 1 else 1.0
    return Neighbours(
        nearest=float(medians.nanmean()),
        labeled=_median(between),
        other_class=_median(between.masked_fill(same, math.inf)),
        accuracy=accuracy,
        chance=float(shares.square().sum()),
        number=len(some),
    )


def distances(x: Tensor) -> Tensor:
    """Distance of each example from each other one, (N, N) in float64; infinite to itself and to its copies."""
    flat = x.flatten(1).double()
    flat = flat - flat.mean(0)  # or the squares below would lose the distances of values far from 0
    between = torch.cdist(flat, flat, compute_mode="use_mm_for_euclid_dist")
    return between.masked_fill(between <= 1e-6 * flat.norm(dim=1).max(), math.inf)


def _values(x: Inputs, rows: Tensor) -> Tensor:
    return as_input(x[rows.to(x.device) if isinstance(x, Tensor) else rows]).cpu()


def _median(between: Tensor) -> float:
    """The median distance to the nearest neighbour, of those that have one; NaN if none has."""
    found = between.amin(1) if len(between) else between.flatten()
    found = found[found.isfinite()]
    return found.median().item() if len(found) else math.nan
