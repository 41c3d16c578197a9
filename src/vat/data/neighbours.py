"""Distances between examples, which give a radius for VAT before any training."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vat.data.loader import Inputs, as_input
from vat.data.splits import evenly

GROUP, GROUPS = 16, 32
"""Size and number of the groups in which nearest neighbours are searched. A search in all examples would give a smaller radius for a larger
data set."""
SHARE = 0.3
"""Default radius divided by the median distance to the nearest neighbour. See docs/choosing_eps.md."""
LABELED = 200
"""Largest number of labelled examples to compare."""
CLOSE, CHANCE = 1.1, 0.4
"""Limits below which classes touch. `CLOSE` limits the median distance to another class, divided by that to any class. `CHANCE` limits the
accuracy of the nearest neighbour above chance, (accuracy - chance) / (1 - chance)."""


@dataclass(frozen=True)
class Neighbours:
    """Median distances to the nearest neighbour, in the units of the inputs.

    Args:
        nearest: Distance of an example to the nearest one in a group of `GROUP` from the pool, NaN if all are equal.
        labeled: Distance of a labelled example to the nearest other labelled one.
        other_class: Distance of a labelled example to the nearest labelled one of another class.
        accuracy: Share of labelled examples whose nearest labelled neighbour has the same class.
        chance: Expected value of `accuracy` for a random neighbour.
        number: Number of labelled examples that were compared.
    """

    nearest: float
    labeled: float
    other_class: float
    accuracy: float
    chance: float
    number: int

    @property
    def default_eps(self) -> float:
        """The default radius ‖r‖₂, rounded to three digits.

        Raises:
            ValueError: If all inputs are equal.
        """
        if math.isnan(self.nearest):
            raise ValueError("all inputs of the pool are equal, so eps=auto has no distance to compute a radius from. Set eps to a number.")
        return float(f"{SHARE * self.nearest:.3g}")

    @property
    def classes_touch(self) -> bool:
        """Whether other classes are as near as the same class, and the nearest neighbour tells little about the class."""
        better = (self.accuracy - self.chance) / (1 - self.chance) if self.chance < 1 else 1.0
        return self.number >= 20 and self.other_class < CLOSE * self.labeled and better < CHANCE


def neighbours(x: Inputs, y: Tensor, *, labeled: Tensor, pool: Tensor) -> Neighbours:
    """Measure the distances in a data set.

    Args:
        x: Inputs (N, …).
        y: Labels (N,), int64.
        labeled: Rows with labels, int64.
        pool: Rows for training, int64.
    """
    sample = evenly(pool, GROUP * GROUPS)
    sample = sample[torch.randperm(len(sample), generator=torch.Generator().manual_seed(0))]  # consecutive rows of a file may be similar
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
    """Distances between all examples, (N, N) in float64. The distance to itself and to copies is infinite."""
    flat = x.flatten(1).double()
    flat = flat - flat.mean(0)  # without this, rounding in the squares would hide small distances between values far from 0
    between = torch.cdist(flat, flat, compute_mode="use_mm_for_euclid_dist")
    return between.masked_fill(between <= 1e-6 * flat.norm(dim=1).max(), math.inf)


def _values(x: Inputs, rows: Tensor) -> Tensor:
    return as_input(x[rows.to(x.device) if isinstance(x, Tensor) else rows]).cpu()


def _median(between: Tensor) -> float:
    """The median distance to the nearest neighbour, over the rows that have one. NaN if no row has one."""
    found = between.amin(1) if len(between) else between.flatten()
    found = found[found.isfinite()]
    return found.median().item() if len(found) else math.nan
