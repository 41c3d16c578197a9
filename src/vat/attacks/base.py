"""The base class of attacks, and the helpers that they share."""

from typing import NamedTuple

import torch
from torch import Tensor

from vat.attacks.losses import Loss
from vat.attacks.threat import Threat
from vat.functional import as_classes
from vat.network import Forward


def predictions(network: Forward, x: Tensor) -> Tensor:
    """Predicted class of each input (N,), without a gradient."""
    with torch.no_grad():
        return as_classes(network(x)).argmax(1)


class View(NamedTuple):
    """The result of one pass for each example: its loss, the gradient of the loss, whether the example is misclassified."""

    loss: Tensor
    gradient: Tensor
    misclassified: Tensor


def look(network: Forward, point: Tensor, y: Tensor, loss: Loss, target: Tensor | None = None) -> View:
    """Run one pass at `point` (N, …) and compute the gradient of `loss` there."""
    with torch.enable_grad():
        leaf = point.detach().requires_grad_()
        logits = as_classes(network(leaf)).double()
        value = loss(logits, y, target)
        gradient = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] if value.requires_grad else None
    return View(value.detach(), torch.zeros_like(point) if gradient is None else gradient, logits.argmax(1) != y)


class Attack:
    """One way to search for adversarial examples.

    Attributes:
        white_box: Whether the attack uses gradients of the attacked network. None: in part.
        on_the_rest: Whether the attack is expensive. It then gets only the examples that the white-box attacks before it in the list left
            robust.
    """

    white_box: bool | None = True
    on_the_rest: bool = False

    @property
    def name(self) -> str:
        """Name of the attack in reports and figures."""
        return type(self).__name__.lower()

    def __call__(self, network: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Search for a misclassified point for each example.

        Args:
            network: Function from inputs to logits, in evaluation mode.
            x: Inputs (N, …) within the threat's bounds.
            y: Classes of the inputs (N,).
            threat: Set of allowed points.
            generator: Source of all randomness, on the device of `x`.

        Returns:
            Misclassified points (N, …). If the search finds none for an example, its input.
        """
        raise NotImplementedError


def at_least_one(name: str, value: int) -> int:
    """Return `value`.

    Raises:
        ValueError: If `value` is below 1.
    """
    if value < 1:
        raise ValueError(f"{name} must be >= 1, got {value}")
    return value


def each(value: Tensor, x: Tensor) -> Tensor:
    """Reshape (N,) to (N, 1, …, 1), so that it broadcasts over `x` (N, …)."""
    return value.view(-1, *[1] * (x.dim() - 1))
