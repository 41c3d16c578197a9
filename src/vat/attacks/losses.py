"""The losses that attacks raise: one value for each example."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def cross_entropy(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Cross entropy of the class `y`, or with a `target` the negative cross entropy of the target.

    Args:
        logits: Logits (N, C).
        y: Classes (N,).
        target: Classes to aim at (N,), or None.

    Returns:
        Losses (N,).
    """
    return F.cross_entropy(logits, y, reduction="none") if target is None else -F.cross_entropy(logits, target, reduction="none")


def logit_difference(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Logit of the best other class, or of `target`, minus the logit of `y`. Without a target it is positive if `y` is not predicted."""
    of_y = logits.gather(1, y[:, None])[:, 0]
    if target is not None:
        return logits.gather(1, target[:, None])[:, 0] - of_y
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - of_y


def scaled_difference(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """The difference of logits ratio (DLR) of Croce & Hein, arXiv 2003.01690. A scale of the logits does not change it.

    The ratio needs three classes, or four with a target. With fewer it is the plain difference, because attacks use only the direction of
    the gradient.
    """
    difference = logit_difference(logits, y, target)
    if logits.shape[1] < (3 if target is None else 4):
        return difference
    ordered = logits.sort(1, descending=True).values
    least = ordered[:, 2] if target is None else (ordered[:, 2] + ordered[:, 3]) / 2
    return difference / (ordered[:, 0] - least + 1e-12)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "dlr": scaled_difference}
