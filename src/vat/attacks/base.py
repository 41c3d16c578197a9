"""What an attack is, and what all of them need."""

from typing import NamedTuple

import torch
from torch import Tensor

from vat.attacks.losses import Loss
from vat.attacks.threat import Threat
from vat.functional import as_classes
from vat.step import Forward


def predictions(network: Forward, x: Tensor) -> Tensor:
    """The class of each input (N,), without a gradient."""
    with torch.no_grad():
        return as_classes(network(x)).argmax(1)


class View(NamedTuple):
    """What one pass tells of each example: its loss, the gradient of it, whether the example has fallen."""

    loss: Tensor
    gradient: Tensor
    fell: Tensor


def look(network: Forward, point: Tensor, y: Tensor, loss: Loss, target: Tensor | None = None) -> View:
    """One pass at `point` (N, …) and the gradient of `loss` there."""
    with torch.enable_grad():
        leaf = point.detach().requires_grad_()
        logits = as_classes(network(leaf)).double()
        value = loss(logits, y, target)
        gradient = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] if value.requires_grad else None
    return View(value.detach(), torch.zeros_like(point) if gradient is None else gradient, logits.argmax(1) != y)


class Attack:
    """One way to search.

    Attributes:
        white_box: It uses gradients of the network that is attacked; None: in part.
        spared: It is too dear to be given what the white-box attacks before it in a list have felled.
    """

    white_box: bool | None = True
    spared: bool = False

    @property
    def name(self) -> str:
        """In reports and figures."""
        return type(self).__name__.lower()

    def __call__(self, network: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Points at which the examples fell, and the inputs themselves where they stand: (N, …).

        Args:
            network: x -> logits, in evaluation mode.
            x: inputs (N, …) within the threat's bounds.
            y: their classes (N,).
            threat: what may be done to them.
            generator: source of all that is random, on the device of x.
        """
        raise NotImplementedError


def at_least_one(name: str, value: int) -> int:
    """`value`, which must be >= 1."""
    if value < 1:
        raise ValueError(f"{name} must be >= 1, got {value}")
    return value


def each(value: Tensor, x: Tensor) -> Tensor:
    """(N,) to (N, 1, …, 1), to go with x (N, …)."""
    return value.view(-1, *[1] * (x.dim() - 1))
