"""Standardisation as the first layer of a network. With it, ε and attacks stay in the units of the data."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, for each channel.

    Args:
        mean: Mean of each channel of the inputs (N, C, …).
        std: Standard deviation of each channel, > 0.

    Raises:
        ValueError: If the lengths differ, or a standard deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"mean and std must have the same length, and std must be > 0, got mean={tuple(mean)}, std={tuple(std)}")
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (N, C, …) to the same shape."""
        positions = [1] * (x.dim() - 2)
        return (x - self.mean.view(-1, *positions)) / self.std.view(-1, *positions)
