"""Norms of perturbations, in float32 or wider."""

import torch
from torch import Tensor

from vat.functional import wide


class Norm:
    """Norm of perturbations (N, …), for each example over all other dimensions."""

    def length(self, r: Tensor) -> Tensor:
        """Length of each example (N, 1, …, 1)."""
        raise NotImplementedError

    def mean_length(self, x: Tensor) -> Tensor:
        """Mean length of the examples."""
        return self.length(x).mean()

    def dual(self, g: Tensor, otherwise: Tensor) -> Tensor:
        """The d with ‖d‖ = 1 that maximises ⟨g, d⟩, for each example.

        Args:
            g: Gradient (N, …).
            otherwise: Directions (N, …) or (1, …) of length 1, for examples whose g is zero or not finite. Causes are a dead network, a
                saturated softmax, an overflow in half precision.
        """
        raise NotImplementedError

    def project(self, r: Tensor, eps: float) -> Tensor:
        """Point of the ball of radius `eps` that is closest to `r` in L2, for each example."""
        raise NotImplementedError

    def sample(self, noise: Tensor) -> Tensor:
        """Random directions of length 1, from standard normal `noise` (N, …)."""
        return self.dual(noise, torch.ones_like(noise[:1]))


class L2(Norm):
    """Euclidean length.

    Example:
        >>> L2().dual(torch.tensor([[3.0, 4.0]]), otherwise=torch.tensor([[1.0, 0.0]]))
        tensor([[0.6000, 0.8000]])
    """

    def length(self, r: Tensor) -> Tensor:
        r = wide(r)
        largest = _largest(r)
        scale = torch.where(_usable(largest), largest, 1)  # divide first: the square of 1e-25 underflows in float32
        return scale * _norm(r / scale)

    def dual(self, g: Tensor, otherwise: Tensor) -> Tensor:
        largest = _largest(wide(g)).detach()
        usable = _usable(largest)
        scaled = torch.where(usable, wide(g) / torch.where(usable, largest, 1), wide(otherwise))
        return (scaled / _norm(scaled)).to(g.dtype)

    def project(self, r: Tensor, eps: float) -> Tensor:
        length = self.length(r)
        outside = length > eps
        return torch.where(outside, r * (eps / torch.where(outside, length, 1)), r).to(r.dtype)


class LInf(Norm):
    """Largest absolute entry."""

    def length(self, r: Tensor) -> Tensor:
        return _largest(wide(r))

    def dual(self, g: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(_usable(_largest(g)), g.sign(), otherwise.to(g.dtype).sign())

    def project(self, r: Tensor, eps: float) -> Tensor:
        return r.clamp(-eps, eps)


NORMS: dict[str, Norm] = {"l2": L2(), "linf": LInf()}


def _largest(x: Tensor) -> Tensor:
    if x.dim() < 2:
        return x.abs()
    largest = torch.amax if x.numel() else torch.sum  # amax refuses an empty tensor
    return largest(x.abs(), _dimensions(x), keepdim=True)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=_dimensions(x), keepdim=True) if x.dim() > 1 else x.abs()


def _usable(length: Tensor) -> Tensor:
    return (length > 0) & length.isfinite()


def _dimensions(x: Tensor) -> tuple[int, ...]:
    return tuple(range(1, x.dim()))
