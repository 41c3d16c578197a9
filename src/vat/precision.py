"""In how many bits a network computes, which a small difference has to survive."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_CONVOLUTIONS = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]  # made when torch is imported


def coarse(x: Tensor, module: nn.Module | None) -> str | None:
    """What a network computes in, where that keeps ten bits of a number or fewer; None where it keeps more.

    Args:
        x: its inputs.
        module: the network; None where it is not known.
    """
    if torch.is_autocast_enabled(x.device.type) or x.dtype in (torch.float16, torch.bfloat16):
        return "half precision"
    if x.dtype is not torch.float32 or x.device.type != "cuda" or not torch.cuda.is_tf32_supported():
        return None
    convolves = module is None or any(isinstance(layer, _ConvNd) for layer in module.modules())
    used = [torch.backends.cuda.matmul.fp32_precision, *([_CONVOLUTIONS.fp32_precision] if convolves else [])]
    return "TF32" if "tf32" in used else None


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within it there is neither autocast nor, in convolutions on a GPU, TF32, which torch takes there unless told otherwise."""
    before = _CONVOLUTIONS.fp32_precision
    _CONVOLUTIONS.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _CONVOLUTIONS.fp32_precision = before
