"""Directions of the perturbation r: functions `(step, divergence, norm, *, options) -> d`.

A direction d (N, …) has length 1 in the norm, for each example. The perturbation is r = ε d. With `create_graph`, d depends on the
parameters; otherwise it is a constant. Costs are in forward passes F of the batch. A backward pass to the input counts as one. The clean
pass does not count, because every direction shares it with the divergence's target.

Your own direction is any such function. It declares with `takes` which of "eps", "num_power_iterations" and "xi" it needs from `VAT`.

Written from Miyato et al., arXiv 1507.00677 and 1704.03976.
"""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from vat.forward_mode import jacobian_vector_product
from vat.functional import Divergence, wide
from vat.layers import is_divided
from vat.norms import NORMS, Norm
from vat.precision import coarse, hidden_half
from vat.step import CleanPass, Step

Direction = Callable[..., Tensor]


def takes(*options: str) -> Callable[[Direction], Direction]:
    """Decorate a direction that takes these options of `VAT`. `VAT` passes "num_power_iterations" and "xi" only if they are set."""

    def declare(direction: Direction) -> Direction:
        setattr(direction, "takes", options)  # noqa: B010  # `direction.takes = …` fails the type check: functions have no such attribute
        return direction

    return declare


def options_of(direction: Direction) -> tuple[str, ...]:
    """Options of `VAT` that a direction takes, also if it is inside a `functools.partial`."""
    return getattr(inside(direction), "takes", ())


def inside(direction: Direction) -> Direction:
    """Unwrap a `functools.partial` to its function."""
    while isinstance(direction, partial):
        direction = direction.func
    return direction


def random(step: Step, divergence: Divergence, norm: Norm, *, create_graph: bool = False) -> Tensor:
    """A random direction (the papers' RPT). Cost: 0 F."""
    return norm.sample(step.normal("direction")).to(step.x.dtype)


@takes("num_power_iterations", "xi")
def finite_difference(
    step: Step,
    divergence: Divergence,
    norm: Norm,
    *,
    num_power_iterations: int = 1,
    xi: float | None = None,
    create_graph: bool = False,
) -> Tensor:
    """Power iteration d ← unit(H d) with H d ≈ ∇ᵣ D(x, x + r) / ξ at r = ξ d: the papers' way. Cost: 2 F for each iteration.

    Args:
        step: The step.
        divergence: Divergence D.
        norm: Norm of r.
        num_power_iterations: Number of products with H.
        xi: Length of the probe as a share of the examples' mean length. None: 1e-3. If it is much smaller, float32 rounds the difference
            to zero. If it is much larger, the difference is not the Hessian's product.
        create_graph: Whether d depends on the parameters.
    """
    if bits := coarse(step.x, step.target, step.module):
        warnings.warn(f"finite differences are noise in {bits}: use direction='random_margin', 'margin' or 'exact'", stacklevel=2)
    d = random(step, divergence, norm)
    for _ in range(num_power_iterations):
        d = norm.dual(hessian_product(step, divergence, norm, d, xi=xi, create_graph=create_graph), otherwise=d)
    return d


def hessian_product(
    step: Step, divergence: Divergence, norm: Norm, d: Tensor, *, xi: float | None = None, create_graph: bool = False
) -> Tensor:
    """H d (N, …) by finite differences. The arguments are those of `finite_difference`. Cost: 2 F."""
    # One length for all rows: with batch norm, H couples the rows, and a different length for each row would change the direction of H d.
    length = norm.mean_length(step.x)
    probe = (1e-3 if xi is None else xi) * torch.where(length > 0, length, 1)
    return gradient(step, divergence, probe * d, create_graph=create_graph) / probe


@takes("num_power_iterations")
def exact(step: Step, divergence: Divergence, norm: Norm, *, num_power_iterations: int = 1, create_graph: bool = False) -> Tensor:
    """Power iteration with the exact product H d = Jᵀ F J d, J = ∂logits/∂x. Cost: 3 F for each iteration.

    At r = 0, the Hessian of D(x, x + r) in r is Jᵀ F J, where F is the Hessian of D in its second argument. So the product needs no ξ and
    has no cancellation.
    """
    if create_graph and step.module is not None and any(map(_loses_third_derivative, step.module.modules())):
        raise ValueError(
            "direction='exact' would give a wrong gradient through r: torch drops part of the third derivative of LayerNorm, instance "
            "norm, and batch norm in training mode. Use direction='finite_difference'"
        )
    if is_divided(step.module):
        raise ValueError(
            "direction='exact' does not work with FSDP2, which frees the weights after the first of its two backward passes: use 'margin'"
        )
    d = random(step, divergence, norm)
    with torch.enable_grad():
        for iteration in range(num_power_iterations):
            jd = _pushed_forward(step, d, create_graph=create_graph)
            x, logits = step.clean.x, step.clean.logits  # not earlier: the memory of both graphs would add up
            u = divergence.hvp(logits if create_graph else logits.detach(), jd)
            keep = step.live or create_graph or iteration + 1 < num_power_iterations
            d = norm.dual(pulled_back(step, logits, x, u, retain_graph=keep, create_graph=create_graph), otherwise=d)
    return d


def _pushed_forward(step: Step, d: Tensor, *, create_graph: bool, clean: CleanPass | None = None) -> Tensor:
    """J d with J = ∂logits/∂x. Cost: 2 F."""
    if not create_graph:
        jd = jacobian_vector_product(lambda x: step.network(x, constant=True), step.x, d)
        if jd is not None:
            return jd
    # Fallback: J d is the derivative along d of Jᵀw, which is linear in w. It is slower, but works for every layer.
    clean = clean or step.clean
    w = torch.zeros_like(clean.logits, requires_grad=True)
    (pulled_back,) = grad(clean.logits, clean.x, w, create_graph=True)
    if not pulled_back.requires_grad:
        raise RuntimeError(NO_SECOND_DERIVATIVE)
    return grad(pulled_back, w, d, retain_graph=True, create_graph=create_graph, materialize_grads=True)[0]


NO_SECOND_DERIVATIVE = (
    "the network's backward pass cannot be differentiated: a custom layer (a torch.autograd.Function, a custom kernel) hides its "
    "derivative. Use direction='random_margin' or 'margin', without gradient_through_r"
)


def refuse_wrong_derivative(step: Step, *, create_graph: bool) -> None:
    """Compare ⟨w, J v⟩ with ⟨Jᵀ w, v⟩ at v = Jᵀ w. They are equal if the derivative of the backward pass is correct.

    Args:
        step: Step whose clean pass is checked.
        create_graph: Whether to check the second derivative that has a graph.

    Raises:
        RuntimeError: If they differ.
    """
    if not step.x.numel():
        return
    with torch.enable_grad():
        x = step.x.detach().requires_grad_()
        clean = CleanPass(x, step.network(x, constant=True))
        w = torch.randn(clean.logits.shape, generator=torch.Generator().manual_seed(0)).to(clean.logits)
        (pulled,) = grad(clean.logits, x, w, retain_graph=True)
        v = pulled / pulled.abs().amax().clamp(min=torch.finfo(pulled.dtype).tiny)
        back = (wide(pulled) * wide(v)).sum()
        there = (wide(w) * wide(_pushed_forward(step, v, create_graph=create_graph, clean=clean).detach())).sum()
    share = 0.3 if coarse(step.x, clean.logits, step.module) or hidden_half(clean.logits) else 0.05
    if back.isfinite() and (there - back).abs() > share * back.abs():
        raise RuntimeError(f"{NO_SECOND_DERIVATIVE} (⟨w, J v⟩ is {there:.3g}, and ⟨Jᵀ w, v⟩ is {back:.3g})")


def _loses_third_derivative(layer: nn.Module) -> bool:
    # pytorch/pytorch#175754; measured in torch 2.13: a directional derivative of -0.57 instead of -0.65 with BatchNorm1d.
    return isinstance(layer, nn.LayerNorm) or (isinstance(layer, _NormBase) and _normalizes_by_its_input(layer))


def _normalizes_by_its_input(layer: nn.Module) -> bool:
    return layer.training or not getattr(layer, "track_running_stats", True)


def margin(step: Step, divergence: Divergence, norm: Norm, *, create_graph: bool = False) -> Tensor:
    """The steepest direction to the nearest decision boundary: d = unit(∇ₓ(second-largest logit − largest logit)). Cost: 1 F.

    It is deterministic and has a definite sign. It is safe in half precision, because its only subtraction is that of two logits.
    """
    return _across(step, divergence, norm, create_graph, nearest=True)


def random_margin(step: Step, divergence: Divergence, norm: Norm, *, create_graph: bool = False) -> Tensor:
    """As `margin`, but towards a random class for each example instead of the second most probable. Cost: 1 F.

    In one step it reaches less divergence than `margin`. Over the training it covers every boundary, not only the nearest.
    """
    return _across(step, divergence, norm, create_graph, nearest=False)


def _across(step: Step, divergence: Divergence, norm: Norm, create_graph: bool, *, nearest: bool) -> Tensor:
    """Direction of the steepest decrease of the margin to the nearest class, or to a random class, for each example."""
    choice = None if nearest else step.uniform("class", len(step.clean.logits))
    with torch.enable_grad():
        towards = -divergence.margin(step.clean.logits, choice).sum()
        (g,) = grad(towards, step.clean.x, retain_graph=step.live or create_graph, create_graph=create_graph)
        # One random row for all examples without a gradient: a row for each would cost as much as the rest of the arithmetic here.
        return norm.dual(g, otherwise=norm.sample(step.normal("direction", one_row=True)))


@takes("eps", "num_power_iterations")
def ascent(
    step: Step,
    divergence: Divergence,
    norm: Norm,
    *,
    eps: float | Tensor,
    num_power_iterations: int = 1,
    create_graph: bool = False,
) -> Tensor:
    """Projected first-order ascent from a random start on the ε-sphere, as in PGD, with steps of 2.5 ε / n. Cost: 2 F for each step.

    At a random r of finite length the gradient does not vanish, so the method needs no second-order information.
    """
    start = d = random(step, divergence, norm)
    for _ in range(num_power_iterations):
        g = gradient(step, divergence, eps * d, create_graph=create_graph)
        d = norm.project(d + 2.5 / num_power_iterations * norm.dual(g, otherwise=d), 1.0)
    return norm.dual(d, otherwise=start)


def gradient(step: Step, divergence: Divergence, r: Tensor, *, create_graph: bool = False) -> Tensor:
    """∇ᵣ D(x, x + r), in the shape of r (N, …). Cost: 2 F."""
    clean = step.clean.logits if create_graph else step.target
    with torch.enable_grad():
        r = r.to(step.x.dtype)
        r = r if r.requires_grad else r.requires_grad_()
        perturbed = step.network((step.inputs if create_graph else step.x) + r, constant=not create_graph)
        u = divergence.gradient(clean, perturbed if create_graph else perturbed.detach())
        return pulled_back(step, perturbed, r, u, retain_graph=create_graph, create_graph=create_graph)


def pulled_back(step: Step, logits: Tensor, x: Tensor, u: Tensor, *, retain_graph: bool, create_graph: bool = False) -> Tensor:
    """Jᵀ u with J = ∂logits/∂x. For float16 logits the result has an arbitrary positive factor for each example.

    Callers need only its direction. Without the factor, float16 would lose the direction for confident examples.
    """
    if logits.dtype is torch.float16 and len(u):  # only float16: with synchronised batch norm, a scale of each rank would be visible
        scale = NORMS["linf"].length(u.detach())
        if step.module is None or any(map(_may_couple_rows, step.module.modules())):
            scale = scale.max()  # one scale for all rows, because each row's gradient depends on the complete batch
        u = u / scale.clamp(min=torch.finfo(scale.dtype).tiny)
    return grad(logits, x, u.to(logits.dtype), retain_graph=retain_graph, create_graph=create_graph)[0]


def _may_couple_rows(layer: nn.Module) -> bool:
    """Whether the layer normalises over the batch, or is a custom layer, which may do so."""
    known = type(layer).__module__.startswith(("torch.nn.modules.", "vat.models."))
    return (isinstance(layer, _BatchNorm) and _normalizes_by_its_input(layer)) or not (known or [*layer.children()])


DIRECTIONS: dict[str, Direction] = {
    "finite_difference": finite_difference,
    "exact": exact,
    "margin": margin,
    "random_margin": random_margin,
    "ascent": ascent,
    "random": random,
}

ACROSS_A_BOUNDARY: tuple[Direction, ...] = (margin, random_margin)
"""Directions that need an output with a decision boundary: see `Divergence.decides`."""
