"""Tests the network on a few examples before the training."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vat.data.datamodule import ResidentDataModule
from vat.data.loader import as_input

EXPECTED = "model={} must map inputs of shape {} to logits of shape {}"


def refuse_without_gradient(network: nn.Module, data: ResidentDataModule) -> None:
    """Refuse a network whose output has no gradient with respect to its inputs. VAT and LDS need it to find r.

    Raises:
        ValueError: If there is no gradient.
    """
    x = as_input(data.x[data.split.labeled[:2]])
    if not x.is_floating_point():  # for words, embeddings are perturbed
        return
    modes = {module: module.training for module in network.modules()}
    with torch.random.fork_rng(devices=[]):
        output = network.eval()(x.requires_grad_())
    for module, training in modes.items():
        module.training = training
    if not output.requires_grad or torch.autograd.grad(output.sum(), x, allow_unused=True)[0] is None:
        inner = network[-1] if isinstance(network, nn.Sequential) and len(network) else network
        raise ValueError(
            f"model={type(inner).__name__}: no gradient leads from its output to its inputs, and VAT and LDS need one. Remove "
            "torch.no_grad, detach or rounding from its forward, or add regularizer=none test=none"
        )


def refuse_unusable(network: nn.Module, data: ResidentDataModule) -> None:
    """Refuse a network whose output is not one logit for each class, in evaluation or in training.

    The test runs without gradients, and does not change the network's buffers or torch's random state.

    Args:
        network: Function x (N, …) -> logits.
        data: Data set to train on, after `setup`.

    Raises:
        ValueError: If the network cannot take the inputs, or returns something else. Says what it returned.
    """
    inner = network[-1] if isinstance(network, nn.Sequential) and len(network) else network
    if not any(p.requires_grad for p in network.parameters()):
        raise ValueError(f"model={type(inner).__name__} has no weights to train: give it parameters with requires_grad=True")
    modes = {module: module.training for module in network.modules()}
    buffers = [buffer.clone() for buffer in network.buffers()]
    try:
        _refuse_output(network.eval(), type(inner).__name__, as_input(data.x[data.split.labeled[:2]]), data.num_classes)
        for module, training in modes.items():
            module.training = training
        _refuse_output(network, type(inner).__name__, as_input(data.x[data.split.labeled[:3]]), data.num_classes)
    finally:
        for module, training in modes.items():
            module.training = training
        for buffer, value in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(value)


def _refuse_output(network: nn.Module, name: str, x: Tensor, num_classes: int) -> None:
    """Refuse a network whose output for these inputs, in its present mode, is not one logit for each class."""
    allowed = [(len(x), num_classes), *([(len(x), 1), (len(x),)] if num_classes == 2 else [])]
    expected = EXPECTED.format(name, tuple(x.shape), " or ".join(map(str, allowed)))
    it = "it" if not network.training else "in training mode it"
    given = x.clone()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = network(given)
    except Exception as error:  # a user's network can raise anything
        said = " ".join(str(error).split())
        raise ValueError(f"{expected}, but {it} raised {type(error).__name__}: {said[:300]}") from error
    if not torch.equal(given, x):
        raise ValueError(f"{expected}, but {it} changed its inputs. Replace operations in place, such as x *= 2 by x = x * 2")
    if not isinstance(output, Tensor):
        by_key = '["logits"]' if isinstance(output, Mapping) and "logits" in output else ""
        logits = "[0]" if isinstance(output, tuple | list) else ".logits" if hasattr(output, "logits") else by_key
        remedy = f": return output{logits} in its forward" if logits else ""
        raise ValueError(f"{expected}, but {it} returned a {type(output).__name__}{remedy}")
    if tuple(output.shape) not in allowed or not output.is_floating_point():
        raise ValueError(f"{expected}, but {it} returned shape {tuple(output.shape)}, {str(output.dtype).removeprefix('torch.')}")
    if not output.isfinite().all() and not network.training:  # of few inputs, batch statistics can be degenerate
        raise ValueError(f"{expected}, but it returned {'NaN' if output.isnan().any() else 'an infinite value'} before any training")
