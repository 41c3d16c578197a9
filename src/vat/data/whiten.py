"""ZCA whitening, as in the papers on CIFAR-10."""

import torch
from torch import Tensor

from vat.data.loader import as_input

ROWS_AT_A_TIME = 10_000  # 120 MB of 32 × 32 photographs in float32
RANK_TOLERANCE = 1e-10  # times the largest variance: float64 cannot tell a smaller variance from 0


class ZCA:
    """The rotation-free linear map whose outputs are uncorrelated, with mean 0 and variance 1.

    W = U diag(1/√λ) Uᵀ, with the covariance's eigenvectors U and eigenvalues λ (Bell and Sejnowski 1997). Nothing is added to λ. TPAMI's
    published code adds 1e-6 to 1/√λ, which changes no digit. Directions in which the examples do not vary are mapped to 0.

    Args:
        x: Examples (N, ...) for the estimate, uint8 or of a floating dtype.

    Raises:
        ValueError: If there are fewer than two examples, or they are all equal.
    """

    def __init__(self, x: Tensor) -> None:
        if len(x) < 2:
            raise ValueError(f"whitening needs at least 2 examples, got {len(x)}")
        chunks = [slice(start, start + ROWS_AT_A_TIME) for start in range(0, len(x), ROWS_AT_A_TIME)]
        mean = torch.stack([as_input(x[rows]).flatten(1).double().sum(0) for rows in chunks]).sum(0) / len(x)
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=x.device)
        for rows in chunks:
            # Products in float32 are five times faster than in float64. After centring, their error is below the pixels' own rounding.
            centred = as_input(x[rows]).flatten(1).float() - mean.float()
            covariance += (centred.T @ centred).double()
        variances, directions = torch.linalg.eigh(covariance / len(x))
        kept = variances > RANK_TOLERANCE * variances[-1]
        if not kept.any() or not variances[-1] > 0:
            raise ValueError("whitening needs examples that differ, got only equal ones")
        directions = directions[:, kept]
        self.mean = mean.float()
        self.matrix = (directions / variances[kept].sqrt() @ directions.T).float()

    def __call__(self, x: Tensor) -> Tensor:
        """Whiten examples (N, ...) to the same shape, float32."""
        whitened = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        for start in range(0, len(x), ROWS_AT_A_TIME):
            rows = slice(start, start + ROWS_AT_A_TIME)
            whitened[rows] = ((as_input(x[rows]).flatten(1).float() - self.mean) @ self.matrix).view(whitened[rows].shape)
        return whitened
