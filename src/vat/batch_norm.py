"""Estimate batch-norm statistics again, as DSVAT does before it evaluates."""

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def reestimate_batch_norm(network: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Set the running statistics of every batch-norm layer to their mean over `inputs`. All other layers run in evaluation mode.

    `torch.optim.swa_utils.update_bn` is no alternative, because it keeps dropout on, and evaluation has none.

    Args:
        network: Network to change in place. Its train/eval modes stay the same.
        inputs: Batches (N, …). All batches have the same weight.

    Raises:
        ValueError: If there are no batches.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not layers:
        return
    inputs = iter(inputs)
    first = next(inputs, None)
    if first is None:
        raise ValueError("inputs contains no batch to estimate batch-norm statistics from: it may be an iterator that is used up")
    modes = {module: module.training for module in network.modules()}
    momenta = {layer: layer.momentum for layer in layers}
    try:
        network.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch then takes the cumulative average
            layer.train()
        for x in chain([first], inputs):
            network(x)
    finally:
        for layer in layers:
            layer.momentum = momenta[layer]
        for module, training in modes.items():
            module.training = training
