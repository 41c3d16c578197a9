"""The precision of a network's arithmetic. A finite difference is only correct if the precision is high enough."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_CONVOLUTIONS = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]  # torch creates it at import


def coarse(x: Tensor, outputs: Tensor, module: nn.Module | None) -> str | None:
    """Name the network's precision if it keeps ten bits of a number or fewer, else return None.

    Args:
        x: Inputs of the network.
        outputs: Outputs of the network for `x`. They show an autocast inside the network.
        module: The network. None: not known.
    """
    dtypes = {x.dtype, outputs.dtype, *(() if module is None else (p.dtype for p in module.parameters()))}
    if torch.is_autocast_enabled(x.device.type) or dtypes & {torch.float16, torch.bfloat16}:
        return "half precision"
    if x.dtype is not torch.float32 or x.device.type != "cuda" or not torch.cuda.is_tf32_supported():
        return None
    by_cudnn = module is None or any(isinstance(layer, _ConvNd | nn.RNNBase) for layer in module.modules())
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32" or (by_cudnn and _CONVOLUTIONS.fp32_precision == "tf32")
    return "TF32" if tf32 else None


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Disable autocast within the block, and TF32 in cuDNN's layers (convolutions, recurrent layers), where it is torch's default.

    Matrix products do not change: they are in TF32 only if the user has enabled it.
    """
    cudnn, flags = torch.backends.cudnn, nullcontext()
    # Torch has an old and a new setting for TF32. This sets the old one, because after a use of the new one torch refuses to read the old.
    if _CONVOLUTIONS.fp32_precision == "tf32":
        flags = cudnn.flags(enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False)
    with torch.autocast(device.type, enabled=False), flags:
        yield


def hidden_half(outputs: Tensor) -> bool:
    """Whether a tensor in the graph of `outputs` is in half precision. The graph must still exist."""
    seen, waiting = set(), [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if any(made.dtype in (torch.float16, torch.bfloat16) for made in getattr(node, "_input_metadata", ())):
            return True
        waiting += [parent for parent, _ in node.next_functions]
    return False
