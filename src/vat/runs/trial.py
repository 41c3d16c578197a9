"""The network is tried on a few examples before anything is trained."""

import torch
from torch import Tensor, nn

from vat.data.datamodule import ResidentDataModule
from vat.data.loader import as_input

EXPECTED = "model={} must map inputs of shape {} to logits of shape {}"


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
        logits = "[0]" if isinstance(output, tuple | list) else ".logits" if hasattr(output, "logits") else ""
        remedy = f": return output{logits} in its forward" if logits else ""
        raise ValueError(f"{expected}; it returned a {type(output).__name__}{remedy}")
    if tuple(output.shape) not in allowed or not output.is_floating_point():
        raise ValueError(f"{expected}; it returned shape {tuple(output.shape)}, {str(output.dtype).removeprefix('torch.')}")
    if not output.isfinite().all():
        raise ValueError(f"{expected}; it returned {'NaN' if output.isnan().any() else 'an infinite value'} before any training")
