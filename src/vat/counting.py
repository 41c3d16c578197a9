"""Norms and divergences over what counts in a step: without padding and void positions; norms also per token, input or graph."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vat.functional import Divergence, flat
from vat.norms import L2, LInf, Norm

Rows = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
"""Two functions: from a tensor shaped like x to rows, each of which has its own norm, and back."""


def per_token(shape: torch.Size) -> Rows:
    """Make each vector along the last dimension a row."""

    def back(rows: Tensor) -> Tensor:
        return rows.reshape(*shape[:-1], *rows.shape[1:])

    return (lambda r: r.reshape(-1, r.shape[-1])), back


def per_group(group: Tensor) -> Rows:
    """Make all examples of a group one row, padded with zeros to the largest group.

    Args:
        group: Group number (N,) of each example; for example, the graph of each node.
    """
    group = group.long()
    counts = torch.bincount(group)
    order = group.argsort(stable=True)
    place = torch.empty_like(group)
    place[order] = torch.arange(len(group), device=group.device) - (counts.cumsum(0) - counts)[group[order]]
    size = (len(counts), int(counts.max()) if len(counts) else 0)

    def to(r: Tensor) -> Tensor:
        return r.new_zeros(*size, *r.shape[1:]).index_put((group, place), r)

    def back(rows: Tensor) -> Tensor:
        return rows.expand(-1, size[1], *rows.shape[2:])[group, place]

    return to, back


class NormOfStep(Norm):
    """A norm of what counts. r is 0 elsewhere.

    Args:
        norm: Norm of a row.
        shape: Shape of x.
        mask: Boolean mask of what counts, with as many dimensions as x, of x's sizes or 1; None if all of x counts.
        rows: How to divide x into rows; each example is a row if None.
    """

    def __init__(self, norm: Norm, shape: torch.Size, mask: Tensor | None, rows: Rows | None):
        self.norm = norm
        self.shape = shape
        self.mask = mask
        self._to, self._back = rows or (_same, _same)
        if mask is not None:
            self._mask_of_rows = mask if rows is None else self._to(mask.expand(shape))
            counted = flat(self._mask_of_rows).any(1)
            self._counted = counted.view(-1, *[1] * (self._mask_of_rows.dim() - 1))

    def length(self, r: Tensor) -> Tensor:
        return self._back(self.norm.length(self._to(self._masked(r))))

    def mean_length(self, x: Tensor) -> Tensor:
        lengths = self.norm.length(self._to(self._masked(x))).flatten()
        if self.mask is None:
            return lengths.mean()
        counted = self._counted.flatten()
        return torch.where(counted, lengths, 0).sum() / counted.sum().clamp(min=1)

    def dual(self, g: Tensor, otherwise: Tensor) -> Tensor:
        g, otherwise = self._to(self._masked(g)), self._to(otherwise.expand(self.shape))
        if self.mask is None:
            return self._back(self.norm.dual(g, otherwise))
        # A row in which nothing counts keeps a direction until the last line, so that no number or gradient is NaN. Products take an eighth
        # of torch.where's time.
        otherwise = otherwise * self._mask_of_rows.to(otherwise.dtype) + (~self._counted).to(otherwise.dtype)
        return self._back(self.norm.dual(g, otherwise) * self._counted.to(g.dtype))

    def project(self, r: Tensor, eps: float) -> Tensor:
        return self._back(self.norm.project(self._to(self._masked(r)), eps))

    def sample(self, noise: Tensor) -> Tensor:
        if len(noise) == 1 < self.shape[0] and isinstance(self.norm, L2 | LInf):
            return self.norm.sample(noise)  # one row for all examples without a gradient; their `dual` scales it
        return super().sample(noise)

    def _masked(self, r: Tensor) -> Tensor:
        r = r.expand(self.shape)
        return r if self.mask is None else torch.where(self.mask, r, 0)


class NormOfInputs(Norm):
    """A norm for each of several inputs, which are concatenated in x (N, D).

    Args:
        norm: Norm of an input.
        shapes: Shapes of the inputs.
    """

    def __init__(self, norm: Norm, shapes: list[torch.Size]):
        self.norm = norm
        self.sizes = [shape[1:].numel() for shape in shapes]

    def length(self, r: Tensor) -> Tensor:
        return torch.cat([self.norm.length(part).expand_as(part) for part in r.split(self.sizes, 1)], 1)

    def dual(self, g: Tensor, otherwise: Tensor) -> Tensor:
        return torch.cat([self.norm.dual(*parts) for parts in zip(g.split(self.sizes, 1), otherwise.split(self.sizes, 1), strict=True)], 1)

    def project(self, r: Tensor, eps: float) -> Tensor:
        return torch.cat([self.norm.project(part, eps) for part in r.split(self.sizes, 1)], 1)


class DivergenceOfStep(Divergence):
    """A divergence over the outputs that count.

    Args:
        divergence: Divergence over all outputs.
        mask: Function from logits (N, C, …) to their boolean mask, (N, C, …) or (N, 1, …), or to None if all count.
    """

    def __init__(self, divergence: Divergence, mask: Callable[[Tensor], Tensor | None]):
        self.divergence = divergence
        self.mask = mask

    def __call__(self, clean: Tensor, perturbed: Tensor) -> Tensor:
        mask = self.mask(clean)
        return self._scaled(self.divergence(kept(clean, mask), kept(perturbed, mask)), mask)

    def gradient(self, clean: Tensor, perturbed: Tensor) -> Tensor:
        mask = self.mask(clean)
        return self._scaled(kept(self.divergence.gradient(kept(clean, mask), kept(perturbed, mask)), mask), mask)

    def hvp(self, logits: Tensor, v: Tensor) -> Tensor:
        mask = self.mask(logits)
        return self._scaled(kept(self.divergence.hvp(kept(logits, mask), kept(v, mask)), mask), mask)

    @property
    def decides(self) -> bool:
        return self.divergence.decides

    def margin(self, logits: Tensor, choice: Tensor | None = None) -> Tensor:
        mask = self.mask(logits)
        return self._scaled(
            self.divergence.margin(logits, choice) if mask is None else self.divergence.margin_of(logits, mask, choice), mask
        )

    def decision(self, logits: Tensor) -> Tensor | None:
        return self.divergence.decision(kept(logits, self.mask(logits)))

    def _scaled(self, value: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None or not self.divergence.averages_positions:
            return value
        return value * share_of_positions(mask, value.dtype).view(-1, *[1] * (value.dim() - 1))


def kept(value: Tensor, mask: Tensor | None) -> Tensor:
    """`value` where the mask is 1, 0 elsewhere."""
    return value if mask is None else torch.where(mask, value, 0)


def share_of_positions(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Number of all positions divided by the number that count (N,), from an output's mask (N, C, …); 0 if none counts."""
    if mask.dim() < 3:
        return torch.ones(len(mask), device=mask.device, dtype=dtype)
    counted = mask.any(1).flatten(1).sum(1, dtype=dtype)
    return torch.where(counted > 0, math.prod(mask.shape[2:]) / counted.clamp(min=1), 0)


def share_of_flips(flips: Tensor, mask: Tensor | None) -> Tensor:
    """Share (N,) of each example's decisions that flip, among those that count.

    Args:
        flips: Whether a decision flips: of each example (N,), of each position (N, …), or of each output (N, C, …).
        mask: Mask of the outputs, from `mask_of_outputs`.
    """
    if flips.dim() == 1 or mask is None:
        return flips.double().flatten(1).mean(1) if flips.dim() > 1 else flips.double()
    counted = (mask if flips.dim() == mask.dim() else mask[:, 0]).expand_as(flips)
    return (flips & counted).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1).double()


def refuse_weights(*masks: Tensor | None) -> None:
    """Refuse masks with floats other than 0 and 1. A mask that is added to attention scores is 0 where something counts.

    Raises:
        ValueError: If there are other numbers.
    """
    for mask in masks:
        if mask is not None and mask.is_floating_point() and not ((mask == 0) | (mask == 1)).all():
            raise ValueError(
                "a mask must be 1 where something counts and 0 elsewhere, got other numbers. If it is added to attention scores, pass "
                "mask == 0. If it has weights, pass mask > 0"
            )


def mask_of_inputs(mask: Tensor, x: Tensor) -> Tensor:
    """Boolean mask with as many dimensions as x (N, …), from one that has x's first dimensions or that broadcasts to x.

    Raises:
        ValueError: If the mask does not fit x.
    """
    mask = mask.bool()
    try:
        if mask.dim() < x.dim() and mask.shape == x.shape[: mask.dim()]:
            return mask.view(*mask.shape, *[1] * (x.dim() - mask.dim()))
        if mask.dim() == x.dim() and mask.expand(x.shape).dim():
            return mask.expand(len(x), *mask.shape[1:])
    except RuntimeError:
        pass
    raise ValueError(
        f"mask of shape {tuple(mask.shape)} does not fit x of shape {tuple(x.shape)}. It must have x's first dimensions, as (N, T) for "
        "(N, T, D), or as many dimensions as x, as mask[:, None] for images (N, C, H, W)"
    )


def positions_of_inputs(mask: Tensor, x: Tensor) -> Tensor | None:
    """Mask of positions (N, …) from a mask of inputs: without dimensions of size 1, as those of features. None if there are no positions.

    A mask shaped like x stays as it is. It is one of positions if x has no features, as a signal (N, T). Otherwise it fits no output with
    positions, so `mask_of_outputs` refuses it there.
    """
    if mask.dim() < x.dim() or mask.dim() == 1:
        return mask if mask.dim() > 1 else None
    mask = mask.expand(len(x), *mask.shape[1:])
    dims = [n for n in range(mask.dim()) if n == 0 or mask.shape[n] == x.shape[n] != 1]
    return mask.reshape([mask.shape[n] for n in dims]) if len(dims) > 1 else None


def mask_of_outputs(mask: Tensor, logits: Tensor, *, named: bool) -> Tensor | None:
    """Mask (N, C, …) or (N, 1, …) for logits (N, C, …) from a mask of positions (N, …); None if the logits have no positions.

    Args:
        mask: 1 where a position counts.
        logits: Outputs (N, C, …).
        named: Whether the mask is an `output_mask`, which may have an entry for each output.

    Raises:
        ValueError: If the mask does not fit the logits.
    """
    mask = mask.bool()
    if logits.dim() > 2 and len(mask) == len(logits) and _longer_than_1(mask.shape[1:]) == _longer_than_1(logits.shape[2:]):
        return mask.reshape(len(logits), 1, *logits.shape[2:])
    if named and mask.shape == logits.shape:
        return mask
    if logits.dim() < 3 and not named:
        return None
    raise ValueError(
        f"a mask of shape {tuple(mask.shape)} does not fit the positions of an output of shape {tuple(logits.shape)}, read as (N, C, …). "
        "Pass class_dim=-1 if the classes are last, or the mask of the outputs as output_mask=…"
    )


def _longer_than_1(sizes: torch.Size) -> list[int]:
    return [size for size in sizes if size != 1]


def _same(r: Tensor) -> Tensor:
    return r
