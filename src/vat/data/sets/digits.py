"""The 8×8 handwritten digits that the package contains. They need no download."""

from typing import Any

from torch import Tensor

from vat.data.datamodule import ResidentDataModule
from vat.data.sets.shipped import read_digits
from vat.data.splits import Split, stratified_parts

WHITE = 16  # the highest grey level


class Digits(ResidentDataModule):
    """1,797 images (1, 8, 8) of ten digits: 1,000 in the pool, 200 for validation, 597 for the test.

    The three parts are stratified and fixed. `seed` chooses the labelled examples within the pool. `num_labeled` does not count the 200
    validation labels. One mean and one standard deviation over the pool standardise all pixels. With one pair for each pixel, the pixels
    at the border, which are nearly always 0, would become very large.

    Source: see `vat.data.sets.shipped`.
    Arguments and errors are those of `ResidentDataModule`.
    """

    unit = "standard deviations of the pixels, each about 6 of the 16 grey levels"
    lds_eps = 2.0

    def __init__(self, *, num_labeled: int | None = 50, **options: Any) -> None:
        super().__init__(num_labeled=num_labeled, **options)

    def load(self) -> tuple[Tensor, Tensor, Split]:
        """Standardised images, labels and parts."""
        self.class_names = [str(digit) for digit in range(10)]
        images, labels = read_digits()
        x, y = images[:, None].float(), labels.long()
        test, validation, pool = stratified_parts(y, (597, 200, 1000), seed=0)
        mean, std = x[pool].mean(), x[pool].std(correction=0)
        x = (x - mean) / std
        self.bounds = float(x.min()), float(x.max())  # the standardised levels 0 and 16, which both occur
        self.preparation = {"mean": float(mean / WHITE), "std": float(std / WHITE)}  # for pixels in [0, 1]
        return x, y, self.divide(y, pool=pool, validation=validation, test=test)
