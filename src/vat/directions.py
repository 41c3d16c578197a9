"""How r is found: one function each, `(step, divergence, norm, *, options) -> d`.

A direction d (N, …) has length 1 in the norm, for each example; the perturbation is r = ε d. With `create_graph` it carries its
dependence on the parameters, otherwise it is a constant. Costs are in forward passes F of the batch; a backward pass to the input is
counted as one, and the clean pass, which every direction shares with the divergence's target, is not counted.

A direction of one's own is any such function. What `VAT` is to give it of "eps", "num_power_iterations" and "xi" it declares by `takes`.

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
    """A decorator: the direction takes these options of `VAT`, of which "num_power_iterations" and "xi" are given only if they are set."""

    def declare(direction: Direction) -> Direction:
        setattr(direction, "takes", options)  # noqa: B010  # a function has no such attribute, says the type checker
        return direction

    return declare


def options_of(direction: Direction) -> tuple[str, ...]:
    """The options of `VAT` that a direction takes, also inside a `functools.partial`."""
    return getattr(inside(direction), "takes", ())


def inside(direction: Direction) -> Direction:
    """The function in a `functools.partial`."""
    while isinstance(direction, partial):
        direction = direction.func
    return direction


def random(step: Step, divergence: Divergence, norm: Norm, *, create_graph: bool = False) -> Tensor:
    """A random direction (the papers' RPT). 0 F."""
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
    """Power iteration d ← unit(H d) with H d ≈ ∇ᵣ D(x, x + r) / ξ at r = ξ d: the papers' way. 2 F an iteration.

    Args:
        step: the step.
        divergence: D.
        norm: of r.
        num_power_iterations: how often H is applied.
        xi: length of the probe as a share of the examples' mean length: 1e-3 if None. Much smaller and float32 rounds the difference
            away, much larger and it is no longer the Hessian's.
        create_graph: let d depend on the parameters.
    """
    if bits := coarse(step.x, step.target, step.module):
        warnings.warn(f"finite differences are noise in {bits}: take direction 'random_margin', 'margin' or 'exact'", stacklevel=2)
    d = random(step, divergence, norm)
    for _ in range(num_power_iterations):
        d = norm.dual(hessian_product(step, divergence, norm, d, xi=xi, create_graph=create_graph), otherwise=d)
    return d


def hessian_product(
    step: Step, divergence: Divergence, norm: Norm, d: Tensor, *, xi: float | None = None, create_graph: bool = False
) -> Tensor:
    """H d (N, …) by finite differences; `d` and the other arguments as for `finite_difference`. 2 F."""
    # One length for the whole batch: under batch norm H couples the rows, and probing each by its own length would turn H d.
    length = norm.mean_length(step.x)
    probe = (1e-3 if xi is None else xi) * torch.where(length > 0, length, 1)
    return gradient(step, divergence, probe * d, create_graph=create_graph) / probe


@takes("num_power_iterations")
def exact(step: Step, divergence: Divergence, norm: Norm, *, num_power_iterations: int = 1, create_graph: bool = False) -> Tensor:
    """Power iteration with the exact product H d = Jᵀ F J d, J = ∂logits/∂x. 3 F an iteration.

    At r = 0 the Hessian of D(x, x + r) is the Hessian F of D in its second argument pulled back to the input, so there is no ξ and
    nothing cancels.
    """
    if create_graph and step.module is not None and any(map(_loses_third_derivative, step.module.modules())):
        raise ValueError(
            "torch drops part of the third derivative of LayerNorm, instance norm, and batch norm in training mode, so the gradient "
            "through r would be wrong with direction 'exact': use 'finite_difference'"
        )
    if is_divided(step.module):
        raise ValueError("direction 'exact' goes back through one graph twice, and FSDP2 drops the weights behind the first: use 'margin'")
    d = random(step, divergence, norm)
    with torch.enable_grad():
        for iteration in range(num_power_iterations):
            jd = _pushed_forward(step, d, create_graph=create_graph)
            x, logits = step.clean.x, step.clean.logits  # not before: the memory of its graph would come on top
            u = divergence.hvp(logits if create_graph else logits.detach(), jd)
            keep = step.live or create_graph or iteration + 1 < num_power_iterations
            d = norm.dual(pulled_back(step, logits, x, u, retain_graph=keep, create_graph=create_graph), otherwise=d)
    return d


def _pushed_forward(step: Step, d: Tensor, *, create_graph: bool, clean: CleanPass | None = None) -> Tensor:
    """J d with J = ∂logits/∂x. 2 F."""
    if not create_graph:
        jd = jacobian_vector_product(lambda x: step.network(x, constant=True), step.x, d)
        if jd is not None:
            return jd
    # As the derivative along d of Jᵀw, which is linear in w: slower, and there for every layer.
    clean = clean or step.clean
    w = torch.zeros_like(clean.logits, requires_grad=True)
    (pulled_back,) = grad(clean.logits, clean.x, w, create_graph=True)
    if not pulled_back.requires_grad:
        raise RuntimeError(NO_SECOND_DERIVATIVE)
    return grad(pulled_back, w, d, retain_graph=True, create_graph=create_graph, materialize_grads=True)[0]


NO_SECOND_DERIVATIVE = (
    "the network's backward pass cannot be differentiated: a layer of its own kind (a torch.autograd.Function, a custom kernel) hides its "
    "derivative. Take direction='random_margin' or 'margin', without gradient_through_r"
)


def refuse_wrong_derivative(step: Step, *, create_graph: bool) -> None:
    """Compare ⟨w, J v⟩ with ⟨Jᵀ w, v⟩ at v = Jᵀ w: one number if the backward pass is differentiated as it should be.

    Args:
        step: of which the clean pass is taken.
        create_graph: look at the second derivative that carries a graph.

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
    # pytorch/pytorch#175754; measured in torch 2.13: a directional derivative of -0.57 in place of -0.65 with BatchNorm1d.
    return isinstance(layer, nn.LayerNorm) or (isinstance(layer, _NormBase) and _normalizes_by_its_input(layer))


def _normalizes_by_its_input(layer: nn.Module) -> bool:
    return layer.training or not getattr(layer, "track_running_stats", True)


def margin(step: Step, divergence: Divergence, norm: Norm, *, create_graph: bool = False) -> Tensor:
    """The steepest way to the nearest decision boundary: d = unit(∇ₓ(runner-up's logit − top's)). 1 F.

    Deterministic, with a definite sign, and safe in half precision: nothing is subtracted but two logits.
    """
    return _across(step, divergence, norm, create_graph, nearest=True)


def random_margin(step: Step, divergence: Divergence, norm: Norm, *, create_graph: bool = False) -> Tensor:
    """As `margin`, towards a class drawn afresh for each example in place of the runner-up. 1 F.

    Reaches less divergence than `margin` in a step, and in the course of training every boundary, not only the nearest.
    """
    return _across(step, divergence, norm, create_graph, nearest=False)


def _across(step: Step, divergence: Divergence, norm: Norm, create_graph: bool, *, nearest: bool) -> Tensor:
    """The direction in which the margin to each example's nearest class, or one drawn at random, falls the steepest."""
    choice = None if nearest else step.uniform("class", len(step.clean.logits))
    with torch.enable_grad():
        towards = -divergence.margin(step.clean.logits, choice).sum()
        (g,) = grad(towards, step.clean.x, retain_graph=step.live or create_graph, create_graph=create_graph)
        # One row serves all examples without a gradient: a draw for each would cost as much as the rest of the arithmetic here.
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
    """Projected first-order ascent from a random start on the ε-sphere, as PGD: steps of 2.5 ε / n. 2 F a step.

    At a random r of finite length the gradient does not vanish, so no second-order information is asked for.
    """
    start = d = random(step, divergence, norm)
    for _ in range(num_power_iterations):
        g = gradient(step, divergence, eps * d, create_graph=create_graph)
        d = norm.project(d + 2.5 / num_power_iterations * norm.dual(g, otherwise=d), 1.0)
    return norm.dual(d, otherwise=start)


def gradient(step: Step, divergence: Divergence, r: Tensor, *, create_graph: bool = False) -> Tensor:
    """∇ᵣ D(x, x + r), shaped like r (N, …). 2 F."""
    clean = step.clean.logits if create_graph else step.target
    with torch.enable_grad():
        r = r.to(step.x.dtype)
        r = r if r.requires_grad else r.requires_grad_()
        perturbed = step.network((step.inputs if create_graph else step.x) + r, constant=not create_graph)
        u = divergence.gradient(clean, perturbed if create_graph else perturbed.detach())
        return pulled_back(step, perturbed, r, u, retain_graph=create_graph, create_graph=create_graph)


def pulled_back(step: Step, logits: Tensor, x: Tensor, u: Tensor, *, retain_graph: bool, create_graph: bool = False) -> Tensor:
    """Jᵀ u with J = ∂logits/∂x; of float16 logits up to a positive factor for each example.

    Directions are wanted, and float16's range would lose those of confident examples.
    """
    if logits.dtype is torch.float16 and len(u):  # a scale of each rank's own would tell through a batch norm over all of them
        scale = NORMS["linf"].length(u.detach())
        if step.module is None or any(map(_may_couple_rows, step.module.modules())):
            scale = scale.max()  # each row's gradient is of the whole batch
        u = u / scale.clamp(min=torch.finfo(scale.dtype).tiny)
    return grad(logits, x, u.to(logits.dtype), retain_graph=retain_graph, create_graph=create_graph)[0]


def _may_couple_rows(layer: nn.Module) -> bool:
    """Whether it normalises over the batch, or is a layer from elsewhere, which may."""
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
"""Those that need an output which decides something: see `Divergence.decides`."""
