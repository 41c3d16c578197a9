"""What a part of an evaluation found, in plain values."""

from typing import Any

import torch
from torch import Tensor

Result = dict[str, Any]
"""What one part of the evaluation found on one batch: plain values, for a line of JSON."""


def to_bits(flags: Tensor) -> str:
    """A 0 or 1 for each of the flags (N,)."""
    return "".join("01"[flag] for flag in flags.tolist())


def from_bits(bits: str, device: torch.device | str = "cpu") -> Tensor:
    """The flags (N,) of `to_bits`."""
    return torch.tensor([bit == "1" for bit in bits], dtype=torch.bool, device=device)
