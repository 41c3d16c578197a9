"""The data set that the package contains: 1,797 handwritten digits, for a trial without a download.

Optical Recognition of Handwritten Digits, test part: E. Alpaydin, C. Kaynak, UCI Machine Learning Repository,
https://doi.org/10.24432/C50P49, CC BY 4.0. The files are in MNIST's format. scikit-learn contains the digits too, but its import takes as
long as torch's.
"""

from pathlib import Path

from torch import Tensor

from vat.data.files.idx import read_idx

FOLDER = Path(__file__).parent
NUMBER = 1797


def read_digits() -> tuple[Tensor, Tensor]:
    """Images uint8 (1797, 8, 8) of 17 grey levels, 0 to 16, and their digits uint8 (1797,)."""
    images = read_idx(FOLDER / "digits-images.idx3-ubyte.gz", (8, 8), most=NUMBER)
    return images, read_idx(FOLDER / "digits-labels.idx1-ubyte.gz", (), most=NUMBER)
