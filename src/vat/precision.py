"""In how many bits a network computes, which a small difference has to survive."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_CONVOLUTIONS = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]  # made when torch is imported


def coarse(x: Tensor, outputs: Tensor, module: nn.Module | None) -> str | None:
    """What a network computes in, where that keeps ten bits of a number or fewer; None where it keeps more.

    Args:
        x: its inputs.
        outputs: what it makes of them: an autocast of its own shows there.
        module: the network; None where it is not known.
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
    """Within it there is neither autocast nor TF32 in cuDNN's layers (convolutions, recurrent ones), where torch takes it by default.

    Matrix products are in TF32 only where somebody asked for it, and stay so.
    """
    cudnn, flags = torch.backends.cudnn, nullcontext()
    if _CONVOLUTIONS.fp32_precision == "tf32":  # by the older of torch's two settings: one of the newer makes it an error to read an older
        flags = cudnn.flags(enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False)
    with torch.autocast(device.type, enabled=False), flags:
        yield


def hidden_half(outputs: Tensor) -> bool:
    """Whether something between the inputs and `outputs`, of which the graph is there, is in half precision."""
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
