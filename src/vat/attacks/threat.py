"""The points an attack may choose from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vat.functional import Norm


@dataclass(frozen=True)
class Threat:
    """The points an attack may choose from: at most `eps` from the input, and within the range of inputs.

    Args:
        norm: of the perturbation.
        eps: its largest length, in the units of the input.
        bounds: least and greatest value of an input; None where any value is one.
    """

    norm: Norm
    eps: float
    bounds: tuple[float, float] | None = None

    def nearest(self, x: Tensor, point: Tensor) -> Tensor:
        """`point` moved into the ball around `x`, then into the range: that takes no point out of the ball, for `x` lies in the range."""
        moved = x + self.norm.project(point - x, self.eps)
        return moved if self.bounds is None else moved.clamp(*self.bounds)

    def random(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Each input moved by ε in a random direction."""
        return self.nearest(x, x + self.eps * self.norm.sample(normal(x, generator)))

    def step(self, x: Tensor, point: Tensor, gradient: Tensor, size: Tensor | float, generator: torch.Generator) -> Tensor:
        """`point` moved by `size` to where `gradient` points, at random where it is zero, and back into the ball around `x`."""
        return self.nearest(x, point + size * self.norm.dual(gradient, self.norm.sample(normal(x, generator))))


def normal(x: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise of the shape of x."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
