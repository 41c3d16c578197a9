"""Is VAT working? What r reaches, beside what nothing, chance and a long search reach; and a sentence where a value is abnormal."""

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
"""Nats below which a penalty teaches nothing."""
FAR = 0.1
"""Nats by which a random r changes predictions if eps is too large: see docs/choosing_eps.md for where this fires."""
MOST_OUTPUTS = 1024
"""Outputs of an example up to which its Hessian is computed, by as many backward passes."""

FELT = 0.02
"""Nats at a random r from which a useless direction is the fault of eps: at the default radius short runs have at most 0.007."""


def looks_for_r(regularizer: object) -> TypeGuard[VAT]:
    """Whether it is a `VAT` that can be judged: `RandomPerturbation`, its control, looks for nothing."""
    return isinstance(regularizer, VAT) and not isinstance(regularizer, RandomPerturbation)


def diagnose(
    forward: Forward, x: Any, vat: VAT, *, key: Key | None = None, module: Modules | None = None, **of_step: Any
) -> dict[str, Tensor]:
    """What `vat` does to a network around `x`, in evaluation mode, beside what it could do; a value for each example.

    Args:
        forward: x -> logits (N, …), as for `Step`. Its module's mode is left as it was.
        x: inputs (N, …), as for `Step`.
        vat: of which radius, direction, norm and divergence are judged.
        key: of all that is drawn; a fresh one if None.
        module: as for `Step`.
        **of_step: what else the term is given, as `at`, `mask`, `class_dim`, `group`; see `Step`.

    Returns:
        Tensors (N,) by name, or of groups (G,) if the outputs are theirs; divergences in nats where they are KL:

        - `lds`: the divergence at r;
        - `kl_at_zero`: without any r, in training mode, where passes may differ in their noise; a single example has batch norm's running
        statistics;
        - `kl_random`, `kl_maximum`: at a random r, and at the worst r that a long search finds;
        - `curvature`, `eigenvalue`: dᵀ H d along r's direction d, and the largest there is, in nats per squared unit of x;
        - `cosine`: |⟨d, the top eigenvector⟩|;
        - `flip_rate`, `margin`: the share of decisions that r changes, and how far they are from changing, in logits; where there are
        decisions.

        The values of the Hessian are there for one L2 norm of each example, and up to 1024 outputs of each.

    Raises:
        ValueError: the radius is 0, so that there is no r to judge.
    """
    if not vat.current_eps:
        raise ValueError("eps must be > 0 for an r to be judged, got 0")
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
    """What `diagnose` finds in evaluation mode."""
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
    """A (N, K, D) with H = AᵀA the Hessian of D(x, x + r) in r at r = 0, exactly, for each example of D entries and K outputs.

    H = Jᵀ F J with J = ∂outputs/∂x and F the Hessian of D in its outputs, so A = F^½ J: K pull-backs on the one clean pass.

    Args:
        step: a live one, of a network that treats its rows one by one (in evaluation mode, where there is batch norm).
        divergence: D.
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
    """The largest eigenvalue (N,) of AᵀA and its unit eigenvector (N, D), 0 where the eigenvalue is, from A (N, K, D)."""
    values, vectors = torch.linalg.eigh(root @ root.mT)  # K × K: the other eigenvalues of AᵀA are 0
    top = (root.mT @ vectors[..., -1:]).squeeze(-1)
    length = top.norm(dim=1, keepdim=True)
    return values[:, -1].clamp(min=0), top / torch.where(length > 0, length, 1)


def maximum(
    step: Step, divergence: Divergence, norm: Norm, *, eps: float | Tensor, starts: Iterable[Tensor] | None = None, steps: int = 40
) -> tuple[Tensor, Tensor]:
    """The largest D(x, x + r) within ‖r‖ ≤ ε that a long search finds: projected ascent from several starts.

    Args:
        step: a live one.
        divergence: D.
        norm: of r.
        eps: ε.
        starts: r / ε (N, …) to start from; `usual_starts` if None.
        steps: from each start; their length falls from ε to 0.

    Returns:
        The divergence reached (N,), and r / ε (N, …).
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
    """A random direction and its opposite; where there are decisions, towards the runner-up and towards a random class. (N, …) each."""
    random = norm.sample(step.normal("search")).to(step.x.dtype)
    yield random
    yield -random  # close to r = 0 the divergence is even, and climbs to both sides
    if divergence.decision(step.target) is not None:
        yield margin(step, divergence, norm)
        yield random_margin(step, divergence, norm)


@contextmanager
def _mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Within it, the network and its parts train or do not; after it they are as before."""
    before = {module: module.training for module in network.modules()}
    network.train(training)
    try:
        yield
    finally:
        for module, was in before.items():
            module.training = was


def interpretation(values: Mapping[str, float], *, direction: str | None = None) -> list[str]:
    """A sentence for each value that is abnormal; none where VAT works.

    Args:
        values: means over examples, by the names of `diagnose` or of VAT's report; those that are absent are not judged.
        direction: the name of how r was found, on which the cause depends; None if it is not known.
    """
    lds, at_zero, chance = (values.get(name, math.nan) for name in ("lds", "kl_at_zero", "kl_random"))
    most = values.get("kl_maximum", values.get("kl_ascent", math.nan))
    flips = values.get("flip_rate", math.nan)
    found = []
    if at_zero > max(1e-6, 0.01 * lds):
        found.append(
            f"KL without any r is {at_zero:.2g}: the passes of a step differ by noise of the network's own, which drowns r. Draw that "
            "noise from torch's default generators, or outside the network"
        )
    if lds < FLAT:
        found.append(
            f"r changes the predictions by {lds:.2g} nats only: eps is too small to matter, or the network is flat (untrained, "
            "saturated, or collapsed to one prediction)"
        )
    elif lds < 1.5 * chance:
        found.append(
            f"r reaches {lds:.2g} nats and a random one {chance:.2g}: the direction is hardly better than noise. "
            f"{_noise(direction, chance)}"
        )
    elif lds < 0.1 * most:
        found.append(
            f"r reaches {lds:.2g} nats where a longer search reaches {most:.2g}: at this eps the direction misses most of what there is. "
            "A direction is found close to x, so a smaller eps helps, or direction=ascent"
        )
    if chance > FAR or (flips > 0.5 and math.isnan(chance)):
        said = [f"a random r changes the predictions by {chance:.2g} nats"] if chance > FAR else []
        said += [f"r flips {100 * flips:.0f} % of the decisions"] if flips > 0.5 else []
        found.append(f"{', and '.join(said)}: eps reaches into other classes; if it stays so, lower it by half or more")
    return found


def _noise(direction: str | None, chance: float) -> str:
    """Why a direction is as good as noise."""
    if direction == "random":
        return "direction=random asks for that: it is VAT's control"
    if chance <= FELT and direction in (None, "finite_difference", "ascent"):
        return "Finite differences in half precision or with a tiny xi are so: take direction=random_margin, margin or exact"
    return "eps is so large that r leaves the region where it was found. Lower eps"
