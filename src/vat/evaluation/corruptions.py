"""Corruptions of inputs, as a bad sensor makes them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SEVERITIES = (1, 2, 3, 4, 5)


def corruptions(x: Tensor) -> tuple[str, ...]:
    """Kinds of corruption for inputs like `x`. Images (N, C, H, W) have four, other inputs only noise."""
    return ("noise", "blur", "shift", "contrast") if x.dim() == 4 else ("noise",)


def corrupt(kind: str, x: Tensor, severity: int, generator: torch.Generator, bounds: tuple[float, float] | None = None) -> Tensor:
    """Corrupt inputs (N, …) within the bounds.

    Each step of `severity` (from 1 to 5) adds:

    - `noise`: normal noise of 8 % of the range of inputs, or without bounds 20 % of their standard deviation
    - `blur`: a Gaussian of 2 % of the width
    - `shift`: 4 % of the width in a random direction; the border is repeated
    - `contrast`: 18 % less contrast

    Raises:
        ValueError: If `kind` does not exist for these inputs.
    """
    if kind not in corruptions(x):
        raise ValueError(f"kind={kind!r} is no corruption of inputs of shape {tuple(x.shape)}: choose one of {', '.join(corruptions(x))}")
    if kind == "noise":
        unit = 0.2 * float(x.std(correction=0)) if bounds is None else 0.08 * (bounds[1] - bounds[0])
        changed = x + severity * unit * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    elif kind == "blur":
        changed = _blurred(x, sigma=0.02 * severity * x.shape[-1])
    elif kind == "shift":
        angle = 2 * math.pi * torch.rand(len(x), generator=generator, device=x.device)
        way = 2 * 0.04 * severity * torch.stack([angle.cos(), angle.sin()], 1)  # the width of the grid is 2
        identity = torch.eye(2, device=x.device).expand(len(x), 2, 2)
        grid = F.affine_grid(torch.cat([identity, way[:, :, None]], 2), list(x.shape), align_corners=False)
        changed = F.grid_sample(x, grid.to(x.dtype), padding_mode="border", align_corners=False)
    else:
        mean = x.mean((1, 2, 3), keepdim=True)
        changed = mean + (1 - 0.18 * severity) * (x - mean)
    return changed if bounds is None else changed.clamp(*bounds)


def _blurred(x: Tensor, sigma: float) -> Tensor:
    reach = max(1, math.ceil(3 * sigma))
    place = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weight = torch.exp(-0.5 * (place / sigma) ** 2)
    weight = (weight / weight.sum()).expand(x.shape[1], 1, 1, -1)
    padded = F.pad(x, [reach] * 4, mode="replicate")
    across = F.conv2d(padded, weight, groups=x.shape[1])
    return F.conv2d(across, weight.transpose(2, 3), groups=x.shape[1])
