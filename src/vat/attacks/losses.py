"""Losses of one example each that attacks raise."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def cross_entropy(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Of the class `y`; towards `target` where there is one, its negative. Logits (N, C), classes (N,), result (N,)."""
    return F.cross_entropy(logits, y, reduction="none") if target is None else -F.cross_entropy(logits, target, reduction="none")


def logit_difference(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """How far the best other class, or `target`, is ahead of `y`, in logits: positive where the example has fallen."""
    of_y = logits.gather(1, y[:, None])[:, 0]
    if target is not None:
        return logits.gather(1, target[:, None])[:, 0] - of_y
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - of_y


def scaled_difference(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """The difference of logits ratio (DLR) of Croce & Hein, arXiv 2003.01690: blind to a scale of the logits.

    With too few classes for the scale, two or for a target three, it is the difference itself: only its gradient's direction counts.
    """
    difference = logit_difference(logits, y, target)
    if logits.shape[1] < (3 if target is None else 4):
        return difference
    ordered = logits.sort(1, descending=True).values
    least = ordered[:, 2] if target is None else (ordered[:, 2] + ordered[:, 3]) / 2
    return difference / (ordered[:, 0] - least + 1e-12)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "dlr": scaled_difference}
