"""Batch-norm statistics estimated afresh (DSVAT does so before it evaluates)."""

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def reestimate_batch_norm(network: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Set the running statistics of every batch-norm layer to their mean over `inputs`; all other layers run as in evaluation.

    `torch.optim.swa_utils.update_bn` would leave dropout on, which evaluation does not.

    Args:
        network: changed in place; its modes are as before afterwards.
        inputs: batches (N, …), each weighted alike.

    Raises:
        ValueError: there are no batches.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not layers:
        return
    inputs = iter(inputs)
    first = next(inputs, None)
    if first is None:
        raise ValueError("no inputs to estimate batch-norm statistics from: an iterator that was used up?")
    modes = {module: module.training for module in network.modules()}
    momenta = {layer: layer.momentum for layer in layers}
    try:
        network.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a cumulative average
            layer.train()
        for x in chain([first], inputs):
            network(x)
    finally:
        for layer in layers:
            layer.momentum = momenta[layer]
        for module, training in modes.items():
            module.training = training
