"""Finds held-out examples that are also trained on: exact copies, and images that were resized or compressed again."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vat.data.loader import Inputs, as_input
from vat.data.splits import evenly

SIDE, COARSE = 8, 4  # pixels a side of the reduced images that are compared, and of those in the first comparison
# Photographs and their thumbnails of 60 pixels at JPEG quality 60 differ by at most 2.6 grey levels and .087 deviations, most by half
# of that. The nearest of 20,000 others differs from each of 1,000 test images by at least 2.7 and .085 (MNIST), 5.9 and .18 (CIFAR-10).
MOST_DIFFERENCE = 4 / 255  # root mean square difference of the reduced images, relative to the range of the values
MOST_SHARE = 0.08  # the same, relative to the deviation of the pixels in an image, because two faint images differ by little
ROUNDING = 1e-3  # of the distances in the first comparison, which are differences of squares
LEAST_SHARE = 0.005  # of the held-out examples, because a few pairs may be similar by chance
MOST_HELD_OUT, MOST_STREAMED = 2000, 2000  # images that are compared; streamed ones must be decoded for it


def find_copies(x: Inputs, pool: Tensor, tested: Inputs, held_out: Tensor) -> Iterator[tuple[str, int, int]]:
    """The kinds of copies that were found: a description, the number of held-out examples, and how many of these were compared.

    Args:
        x: Inputs (N, ...). For images (N, C, H, W), near copies count too.
        pool: Rows of `x` for training.
        tested: Inputs (M, ...), which may be `x` too.
        held_out: Rows of `tested` that are held out.
    """
    exact = torch.zeros(len(held_out), dtype=torch.bool)
    if isinstance(x, Tensor) and isinstance(tested, Tensor):
        seen = {*_hashes(x, pool)}
        exact = torch.tensor([row in seen for row in _hashes(tested, held_out)], dtype=torch.bool)
        if exact.any():
            yield "have the values of", int(exact.sum()), len(held_out)
    if len(x.shape) == 4 and len(held_out):
        if not isinstance(x, Tensor):
            pool = evenly(pool, MOST_STREAMED)
        looked_at = evenly(torch.arange(len(held_out)), MOST_HELD_OUT)
        near = _near(_reduced(tested, held_out[looked_at]), _reduced(x, pool)) & ~exact[looked_at]
        if near.sum() > LEAST_SHARE * len(near):
            yield "look like resized or recompressed copies of", int(near.sum()), len(looked_at)


def _hashes(x: Tensor, rows: Tensor) -> list[int]:
    """A hash of the values of each row."""
    values = x.cpu().numpy()
    return [hash(values[row].tobytes()) for row in rows.tolist()]


def _reduced(x: Inputs, rows: Tensor) -> Tensor:
    """Images reduced to (N, C, S, S) by means over squares, relative to the range of their values."""
    reduced = torch.cat([_pooled(as_input(x[part]).float(), SIDE).cpu() for part in rows.split(500)])
    return reduced if x.dtype == torch.uint8 else reduced / (reduced.amax() - reduced.amin()).clamp_min(1e-30)


def _pooled(images: Tensor, side: int) -> Tensor:
    height, width = images.shape[2:]
    return F.adaptive_avg_pool2d(images, (min(side, height), min(side, width)))


def _near(ones: Tensor, others: Tensor) -> Tensor:
    """Which of the ones have a near copy among the others, (N,).

    Means over larger squares do not differ more than the images. So a first comparison of few such means misses no copy.
    """
    height, width = ones.shape[2:]
    coarse = COARSE if height % COARSE == width % COARSE == 0 else SIDE
    few = [_pooled(images, coarse).flatten(1) for images in (ones, others)]
    limits = (MOST_SHARE * ones.flatten(2).std(2, correction=0).mean(1)).clamp_max(MOST_DIFFERENCE)
    found = torch.zeros(len(ones), dtype=torch.bool)
    for rows in torch.arange(len(ones)).split(100):
        distances = torch.cdist(few[0][rows], few[1]) / few[0].shape[1] ** 0.5
        for pairs in torch.nonzero(distances <= limits[rows, None] + ROUNDING).split(20_000):
            one, other = rows[pairs[:, 0]], pairs[:, 1]
            found[one[(ones[one] - others[other]).flatten(1).square().mean(1).sqrt() <= limits[one]]] = True
    return found
