"""Cost of a call: its time relative to another call, and its peak memory."""

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Action = Callable[[], Any]
CALLS = 20 if torch.cuda.is_available() else 1  # in a sample; one call on an idle GPU would measure the launch


def timed(action: Action, calls: int = 1) -> float:
    """Mean seconds of a call. The device's queue is empty before the first call and after the last."""
    _wait()
    began = time.perf_counter()
    for _ in range(calls):
        action()
    _wait()
    return (time.perf_counter() - began) / calls


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turn(actions: Mapping[str, Action], *, reference: str, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of each action, and the median and range of its ratios to the reference, which is timed again for each ratio."""
    for action in actions.values():  # warm-up: the first calls allocate buffers and choose kernels
        action()
        action()
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    ratios: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            base, own = timed(actions[reference], CALLS), timed(action, CALLS)
            seconds[name].append(own)
            ratios[name].append(own / base)
    return {name: summary(seconds[name], ratios[name]) for name in actions}


def summary(seconds: Sequence[float], ratios: Sequence[float]) -> dict[str, float]:
    """Summarize samples: median seconds, and the median and range of the ratios."""
    return {"seconds": median(seconds), "ratio": median(ratios), "least": min(ratios), "most": max(ratios)}


class Peak(TorchDispatchMode):
    """Peak bytes of live tensors within the block. `held` tensors count from the start. Buffers inside an operator do not count."""

    def __init__(self, held: Sequence[Tensor]):
        super().__init__()
        self.live = self.most = 0
        self.storages: dict[int, weakref.ref[Any]] = {}
        for tensor in held:
            self.count(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self.count(value)
        return out

    def count(self, tensor: Tensor) -> None:
        """Count the storage of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place in self.storages:
            return

        def freed(_: Any) -> None:
            del self.storages[place]
            self.live -= size

        self.storages[place] = weakref.ref(storage, freed)
        self.live += size
        self.most = max(self.most, self.live)


def peak_memory(action: Action, held: Sequence[Tensor]) -> int:
    """Peak bytes of a call, including the `held` tensors. On a GPU the allocator counts them, elsewhere `Peak` does.

    Args:
        action: Call to measure.
        held: Tensors that exist before the call, such as parameters, without gradients.
    """
    if torch.cuda.is_available():
        action()  # cuBLAS allocates a permanent workspace in its first call, which is not part of the step
        for tensor in held:
            tensor.grad = None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        action()
        return torch.cuda.max_memory_allocated() - before + sum(tensor.nbytes for tensor in held)
    with Peak(held) as peak:
        action()
    return peak.most
