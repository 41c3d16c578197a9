"""The network is tried on a few examples before anything is trained."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vat.data.datamodule import ResidentDataModule
from vat.data.loader import as_input

EXPECTED = "model={} must map inputs of shape {} to logits of shape {}"


def refuse_without_gradient(network: nn.Module, data: ResidentDataModule) -> None:
    """Refuse a network whose output has no gradient with respect to its inputs, along which VAT and the LDS of a test look for r.

    Raises:
        ValueError: If there is none.
    """
    x = as_input(data.x[data.split.labeled[:2]])
    if not x.is_floating_point():  # of words an embedding is perturbed
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
    """Refuse a network whose output is not one logit for each class.

    The trial runs in evaluation mode, without gradients, and leaves torch's random state as it was.

    Args:
        network: x (N, …) -> logits.
        data: what it is to be trained on, after `setup`.

    Raises:
        ValueError: If the network cannot take the inputs, or returns something else. The message says what it returned.
    """
    x = as_input(data.x[data.split.labeled[:2]])
    allowed = [(len(x), data.num_classes), *([(len(x), 1), (len(x),)] if data.num_classes == 2 else [])]
    inner = network[-1] if isinstance(network, nn.Sequential) and len(network) else network
    expected = EXPECTED.format(type(inner).__name__, tuple(x.shape), " or ".join(map(str, allowed)))
    if not any(p.requires_grad for p in network.parameters()):
        raise ValueError(f"model={type(inner).__name__} has no weights to train: give it parameters with requires_grad=True")
    modes = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = network.eval()(x)
    except Exception as error:  # a network of a user's own raises what it likes
        said = " ".join(str(error).split())
        raise ValueError(f"{expected}; it raised {type(error).__name__}: {said[:300]}") from error
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(output, Tensor):
        by_key = '["logits"]' if isinstance(output, Mapping) and "logits" in output else ""
        logits = "[0]" if isinstance(output, tuple | list) else ".logits" if hasattr(output, "logits") else by_key
        remedy = f": return output{logits} in its forward" if logits else ""
        raise ValueError(f"{expected}; it returned a {type(output).__name__}{remedy}")
    if tuple(output.shape) not in allowed or not output.is_floating_point():
        raise ValueError(f"{expected}; it returned shape {tuple(output.shape)}, {str(output.dtype).removeprefix('torch.')}")
    if not output.isfinite().all():
        raise ValueError(f"{expected}; it returned {'NaN' if output.isnan().any() else 'an infinite value'} before any training")
