"""Results of the parts of an evaluation, as plain values."""

from typing import Any

import torch
from torch import Tensor

Result = dict[str, Any]
"""Result of one part of the evaluation on one batch: plain values, for a line of JSON."""


def to_bits(flags: Tensor) -> str:
    """Write flags (N,) as a text of zeros and ones."""
    return "".join("01"[flag] for flag in flags.tolist())


def from_bits(bits: str, device: torch.device | str = "cpu") -> Tensor:
    """Read flags (N,) from a text of `to_bits`."""
    return torch.tensor([bit == "1" for bit in bits], dtype=torch.bool, device=device)
