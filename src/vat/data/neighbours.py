"""Distances between examples: what a radius of VAT is compared with, before any training."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vat.data.loader import Inputs, as_input
from vat.data.splits import evenly

SAMPLE = 200
"""Examples among which a nearest neighbour is looked for: always as many, so that a radius does not shrink as a data set grows."""
SHARE = 0.4
"""Default radius as a share of the median distance to the nearest neighbour: see docs/choosing_eps.md."""
CLOSE = 1.15
"""Other classes are as near as any neighbour if the two median distances differ by a smaller factor."""


@dataclass(frozen=True)
class Neighbours:
    """Median distances to the nearest neighbour, in the units of the inputs.

    Args:
        nearest: Of an example to any other one, among `SAMPLE` of the pool; NaN if all are equal.
        labeled: Of a labelled example to any other labelled one.
        other_class: Of a labelled example to the nearest of another class.
        number: Labelled examples that were compared.
    """

    nearest: float
    labeled: float
    other_class: float
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
        """Whether the nearest labelled example of another class is as near as any labelled example."""
        return self.number >= 20 and self.other_class < CLOSE * self.labeled


def neighbours(x: Inputs, y: Tensor, *, labeled: Tensor, pool: Tensor) -> Neighbours:
    """Measure a data set.

    Args:
        x: Inputs (N, …).
        y: Labels (N,).
        labeled: Rows with labels.
        pool: Rows to train on.
    """
    sample, some = evenly(pool, SAMPLE), evenly(labeled, SAMPLE)
    between, classes = distances(_values(x, some)), y[some.to(y.device)].cpu()
    other = between.masked_fill(classes[:, None] == classes[None], math.inf)
    return Neighbours(_median(distances(_values(x, sample))), _median(between), _median(other), len(some))


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
