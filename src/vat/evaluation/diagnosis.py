"""Is VAT working? Compare the divergence at r with no r, a random r and a long search, and explain abnormal values."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.modules.batchnorm import _BatchNorm

from vat.counting import kept, share_of_flips
from vat.directions import margin, random_margin
from vat.functional import Divergence, flat
from vat.network import Forward, Modules, Network
from vat.norms import L2, Norm
from vat.regularizers import VAT, RandomPerturbation
from vat.step import Key, Step

FLAT = 1e-5
"""Nats below which a penalty has no effect."""
FAR = 0.1
"""Nats by which a random r changes predictions if eps is too large. docs/choosing_eps.md shows at which eps the warning appears."""
MOST_OUTPUTS = 1024
"""Largest number of outputs of an example for which its Hessian is computed. It costs a backward pass for each output."""

FELT = 0.02
"""Nats at a random r above which eps causes a useless direction. At the default radius, short runs have at most 0.007 nats."""


def looks_for_r(regularizer: object) -> TypeGuard[VAT]:
    """Whether it is a `VAT` whose r can be judged. `RandomPerturbation`, its control, does not search for r."""
    return isinstance(regularizer, VAT) and not isinstance(regularizer, RandomPerturbation)


def diagnose(
    forward: Forward, x: Any, vat: VAT, *, key: Key | None = None, module: Modules | None = None, **of_step: Any
) -> dict[str, Tensor]:
    """Compare what `vat` does to a network around `x` with what it could do, in evaluation mode; a value for each example.

    Args:
        forward: Function x -> logits (N, …), as for `Step`. Its module's mode is restored.
        x: Inputs (N, …), as for `Step`.
        vat: Regularizer whose radius, direction, norm and divergence are judged.
        key: Key of all random numbers; a new one if None.
        module: Module, as for `Step`.
        **of_step: Further arguments of the term, as `at`, `mask`, `class_dim`, `group`; see `Step`.

    Returns:
        Tensors (N,) by name, or (G,) if there is one output for each group. KL divergences are in nats.

        - `lds`: divergence at r;
        - `kl_at_zero`: divergence without r in training mode, in which passes may differ by noise; for a single example batch norm uses its
        running statistics;
        - `kl_random`, `kl_maximum`: divergence at a random r, and at the worst r that a long search finds;
        - `curvature`, `eigenvalue`: dᵀ H d along r's direction d, and its largest possible value, in nats per squared unit of x;
        - `cosine`: |⟨d, the top eigenvector⟩|;
        - `flip_rate`, `margin`: share of decisions that r changes, and their distance from a change, in logits; only for outputs with
        decisions.

        The three values of the Hessian need an L2 norm of each example, and at most 1024 outputs of each.

    Raises:
        ValueError: If the radius is 0, so that there is no r to judge.
    """
    if not vat.current_eps:
        raise ValueError("eps must be > 0 to judge r, got 0: set a positive eps, or diagnose later in its schedule")
    network = Network(forward, module).module or nn.Identity()
    with _mode(network, training=True), torch.no_grad():
        batch_norms = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
        step = Step(forward, x, module=module, key=key, **of_step)
        if len(step.x) == 1:
            for layer in batch_norms:
                layer.eval()
        divergence = step.divergence(vat.divergence)
        found = {"kl_at_zero": divergence(step.target, step.network(step.x, constant=True))}
    with _mode(network, training=False):
        step = Step(forward, x, module=module, key=step.key, live=True, **of_step)
        found |= vat.through_checkpoints(partial(_around, vat=vat), step)
    return found


def _around(step: Step, vat: VAT) -> dict[str, Tensor]:
    """Compute the values of `diagnose` in evaluation mode."""
    eps, divergence, norm = step.radius(vat.current_eps), step.divergence(vat.divergence), step.norm(vat.norm, vat.per)
    r = vat.virtual_adversarial_perturbation(step).detach()
    d = (r / eps).nan_to_num(nan=0.0)  # a scale may be 0
    chance = eps * norm.sample(step.normal("diagnosis")).to(r.dtype)
    with torch.no_grad():
        perturbed, at_chance = (step.network(step.x + p, constant=True) for p in (r, chance))
    found = {"lds": divergence(step.target, perturbed), "kl_random": divergence(step.target, at_chance)}
    starts = [d]
    if isinstance(vat.norm, L2) and vat.per == "example" and step.group is None and step.target[:1].numel() <= MOST_OUTPUTS:
        root = root_of_hessian(step, divergence)
        found["eigenvalue"], eigenvector = top_eigenpair(root)
        found["curvature"] = (root @ flat(d.double())[..., None]).square().sum((1, 2))
        found["cosine"] = (flat(d.double()) * eigenvector).sum(1).abs()
        starts += [eigenvector.view_as(r).to(r.dtype), -eigenvector.view_as(r).to(r.dtype)]
    found["kl_maximum"], _ = maximum(step, divergence, norm, eps=eps, starts=[*starts, *usual_starts(step, divergence, norm)])
    before, after = divergence.decision(step.target), divergence.decision(perturbed)
    if before is not None and after is not None:
        found["flip_rate"] = share_of_flips(before != after, step.mask_of(step.target))
        found["margin"] = divergence.margin(step.target)
    return found


def root_of_hessian(step: Step, divergence: Divergence) -> Tensor:
    """Exact square root A (N, K, D) of the Hessian H = AᵀA of D(x, x + r) in r at r = 0; each example has D entries and K outputs.

    H = Jᵀ F J with J = ∂outputs/∂x and F the Hessian of D in its outputs. So A = F^½ J costs K backward passes through one clean pass.

    Args:
        step: A live step. Its network must treat each row separately (with batch norm: in evaluation mode).
        divergence: Divergence D.
    """
    x, logits = step.clean.x, step.clean.logits
    outputs = logits[:1].numel()
    basis = [e.view(1, *logits.shape[1:]).expand_as(logits) for e in torch.eye(outputs, dtype=logits.dtype, device=x.device)]
    with torch.enable_grad():
        pulled_back = [flat(kept(grad(logits, x, e, retain_graph=True)[0], step.mask)).double() for e in basis]
    fisher = torch.stack([divergence.hvp(logits.detach(), e).reshape(len(x), outputs).double() for e in basis], 1)
    values, vectors = torch.linalg.eigh((fisher + fisher.mT) / 2)
    return values.clamp(min=0).sqrt()[..., None] * (vectors.mT @ torch.stack(pulled_back, 1))


def top_eigenpair(root: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue (N,) of AᵀA and its unit eigenvector (N, D), from A (N, K, D). For an eigenvalue 0 the eigenvector is 0."""
    values, vectors = torch.linalg.eigh(root @ root.mT)  # K × K: the other eigenvalues of AᵀA are 0
    top = (root.mT @ vectors[..., -1:]).squeeze(-1)
    length = top.norm(dim=1, keepdim=True)
    return values[:, -1].clamp(min=0), top / torch.where(length > 0, length, 1)


def maximum(
    step: Step, divergence: Divergence, norm: Norm, *, eps: float | Tensor, starts: Iterable[Tensor] | None = None, steps: int = 40
) -> tuple[Tensor, Tensor]:
    """Largest D(x, x + r) within ‖r‖ ≤ ε that a long search finds, by projected ascent from several starts.

    Args:
        step: A live step.
        divergence: Divergence D.
        norm: Norm of r.
        eps: Radius ε, in the units of x.
        starts: Starting points r / ε (N, …); `usual_starts` if None.
        steps: Number of steps from each start. Their length decreases from ε to 0.

    Returns:
        The divergence found (N,), and its r / ε (N, …).
    """
    best = torch.full_like(divergence(step.target, step.target), -1.0)
    where = torch.zeros_like(step.x)
    for d in usual_starts(step, divergence, norm) if starts is None else starts:
        for t in range(steps + 1):
            with torch.enable_grad():
                r = (eps * d).requires_grad_()
                reached = divergence(step.target, step.network(step.x + r, constant=True))
                (g,) = grad(reached.sum(), r)
            better = reached.detach() > best
            best = torch.where(better, reached.detach(), best)
            where = torch.where(step.for_rows(better), d, where)
            d = norm.project(d + (1 - t / steps) * norm.dual(g, otherwise=d), 1.0)
    return best, where


def usual_starts(step: Step, divergence: Divergence, norm: Norm) -> Iterator[Tensor]:
    """Starting directions (N, …): a random one, its opposite, and for outputs with decisions both margin directions."""
    random = norm.sample(step.normal("search")).to(step.x.dtype)
    yield random
    yield -random  # near r = 0 the divergence is symmetric, so the search climbs on both sides
    if divergence.decision(step.target) is not None:
        yield margin(step, divergence, norm)
        yield random_margin(step, divergence, norm)


@contextmanager
def _mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Context in which the network and its parts are in training or evaluation mode; their modes are restored afterwards."""
    before = {module: module.training for module in network.modules()}
    network.train(training)
    try:
        yield
    finally:
        for module, was in before.items():
            module.training = was


def interpretation(values: Mapping[str, float], *, direction: str | None = None) -> list[str]:
    """Explain each abnormal value in a sentence; the list is empty if VAT works.

    Args:
        values: Means over examples, by the names of `diagnose` or of VAT's report. Missing values are not judged.
        direction: Name of the direction that found r, on which the cause depends; None if it is not known.
    """
    lds, at_zero, chance = (values.get(name, math.nan) for name in ("lds", "kl_at_zero", "kl_random"))
    most = values.get("kl_maximum", values.get("kl_ascent", math.nan))
    flips = values.get("flip_rate", math.nan)
    found = []
    if at_zero > max(1e-6, 0.01 * lds):
        found.append(
            f"KL without any r is {at_zero:.2g}: the network's own noise makes the passes of a step differ and hides the effect of r. "
            "Draw that noise from torch's default generators, or outside the network"
        )
    if lds < FLAT:
        found.append(
            f"r changes the predictions by only {lds:.2g} nats: eps is too small to matter, or the network is flat (untrained, "
            "saturated, or collapsed to one prediction)"
        )
    elif lds < 1.5 * chance:
        found.append(
            f"r reaches {lds:.2g} nats and a random r {chance:.2g}: the direction is hardly better than noise. {_noise(direction, chance)}"
        )
    elif lds < 0.1 * most:
        found.append(
            f"r reaches {lds:.2g} nats but a longer search reaches {most:.2g}: at this eps the direction is far from the worst one. "
            "It is found close to x, so lower eps, or use direction=ascent"
        )
    if chance > FAR or (flips > 0.5 and math.isnan(chance)):
        said = [f"a random r changes the predictions by {chance:.2g} nats"] if chance > FAR else []
        said += [f"r flips {100 * flips:.0f} % of the decisions"] if flips > 0.5 else []
        found.append(f"{', and '.join(said)}: eps reaches into other classes. If this persists, lower eps to half or less")
    return found


def _noise(direction: str | None, chance: float) -> str:
    """Explain why a direction is no better than noise."""
    if direction == "random":
        return "This is expected of direction=random: it is VAT's control"
    if chance <= FELT and direction in (None, "finite_difference", "ascent"):
        return "Half precision or a tiny xi does this to finite differences: use direction=random_margin, margin or exact"
    return "eps is so large that r leaves the region where it was found. Lower eps"
