"""The set of points that an attack may choose from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vat.norms import Norm


@dataclass(frozen=True)
class Threat:
    """The set of points that an attack may choose from: at most `eps` from the input, and within the range of inputs.

    Args:
        norm: Norm of the perturbation.
        eps: Largest length of the perturbation, in the units of the input.
        bounds: Least and greatest value of an input. None: any value is allowed.
    """

    norm: Norm
    eps: float
    bounds: tuple[float, float] | None = None

    def nearest(self, x: Tensor, point: Tensor) -> Tensor:
        """Project `point` onto the ball around `x`, then onto the range. `x` is in the range, so the result stays in the ball."""
        moved = x + self.norm.project(point - x, self.eps)
        return moved if self.bounds is None else moved.clamp(*self.bounds)

    def random(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Move each input by ε in a random direction."""
        return self.nearest(x, x + self.eps * self.norm.sample(normal(x, generator)))

    def step(self, x: Tensor, point: Tensor, gradient: Tensor, size: Tensor | float, generator: torch.Generator) -> Tensor:
        """Move `point` by `size` along `gradient`, then back into the ball around `x`. A zero gradient gives a random direction."""
        return self.nearest(x, point + size * self.norm.dual(gradient, self.norm.sample(normal(x, generator))))


def normal(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise in the shape of `x`."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
