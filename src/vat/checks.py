"""What a first call looks at: whether the passes agree, the derivatives are right, and the numbers fine enough."""

import warnings
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vat.functional import wide
from vat.precision import hidden_half
from vat.step import Step

_seen: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def first_time(step: Step, what: str) -> bool:
    """Whether this was not asked before of the step's network; always so if its module is not known."""
    module = step.module
    if type(module) is nn.ModuleList:  # made for the step, of several
        module = next(module.children(), None)
    if module is None:
        return True
    seen = _seen.setdefault(module, set())
    new = what not in seen
    seen.add(what)
    return new


def warn_of_passes_that_differ(step: Step) -> None:
    """Compare the prediction at r = 0 with the clean one: they differ if a pass draws noise, or keeps state, unseen by the step. 1 F."""
    with torch.no_grad():
        again = wide(step.network(step.x, constant=True))
    clean = wide(step.target)
    mask = step.mask_of(clean)
    difference = (again - clean).abs() if mask is None else torch.where(mask, (again - clean).abs(), 0)
    # Kernels that add in any order differ by rounding.
    tolerance = 1e2 * torch.finfo(step.target.dtype).eps * (1 + clean.nan_to_num(0.0, 0.0, 0.0).abs().amax() if clean.numel() else 1)
    if (difference.nan_to_num(0.0) > tolerance).any():
        warnings.warn(
            f"two passes of the same input differ by up to {difference.nan_to_num(0.0).max():.2g} without any r, so the penalty measures "
            "that, too. Likely causes: noise from a generator of the network's own (draw it from torch's, Python's or numpy's default "
            "ones), a state inside an object or a container (keep it in an attribute or a buffer), or a module that is not named "
            "(module=[model, other])",
            stacklevel=4,
        )


def warn_of_misread_outputs(step: Step, *, classes: bool) -> None:
    """Point out logits (N, H, W, C) that are read as H classes, and outputs (N, T) that a mask of positions (N, T) does not reach.

    Args:
        step: of which the clean pass is looked at.
        classes: the outputs have some.
    """
    logits, inputs = step.target, step.x.shape
    first, last = logits.shape[1:-1], logits.shape[2:]

    def are_positions(shape: torch.Size) -> bool:
        return len(set(shape)) == 1 or shape in (inputs[1:-1], inputs[2:])

    if classes and step.class_dim is None and logits.dim() > 3 and are_positions(first) and not are_positions(last):
        warnings.warn(
            f"logits of shape {tuple(logits.shape)} are read as {first[0]} classes at {' × '.join(map(str, last))} positions: say "
            "class_dim=-1 if the classes are last, and class_dim=1 if they are not",
            stacklevel=4,
        )
    if step.mask is not None and logits.dim() == 2 and logits.shape == inputs[:2] and len(inputs) > 2 and step.mask_of(logits) is None:
        warnings.warn(
            f"outputs of shape {tuple(logits.shape)} are read as {logits.shape[1]} outputs of each example, to which the mask of the "
            "inputs does not apply: if there is one for each position, say output_mask, too",
            stacklevel=4,
        )


def warn_of_hidden_half(step: Step) -> None:
    """Tell of half precision inside the network, behind an output in float32: finite differences are noise in it. 1 F."""
    with torch.enable_grad():
        outputs = step.network(step.x.detach().requires_grad_(), constant=True)
    if hidden_half(outputs):
        warnings.warn(
            "the network computes in half precision behind an output in float32, and finite differences are noise in it: take direction "
            "'random_margin', 'margin' or 'exact', or turn its autocast off",
            stacklevel=4,
        )


def warn_of_rounding(step: Step, r: Tensor) -> None:
    """Tell of an r that x's dtype rounds away when it is added."""
    if step.x.dtype not in (torch.float16, torch.bfloat16) or not r.numel():
        return
    added = wide(step.x + r) - wide(step.x)
    lost = (added - wide(r)).norm() / wide(r).norm().clamp(min=torch.finfo(torch.float32).tiny)
    if lost > 0.25:
        warnings.warn(
            f"x is {step.x.dtype}, in which x + r rounds {100 * lost:.0f} % of r away: pass x in float32, under torch.autocast or to a "
            "network whose first layer converts it, or raise eps",
            stacklevel=5,
        )
