"""Checks at a first call: two passes agree, the outputs are read correctly, and the precision is high enough."""

import warnings
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vat.functional import wide
from vat.precision import hidden_half
from vat.step import Step

_seen: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def first_time(step: Step, what: str) -> bool:
    """Whether this is the first call with `what` for the step's network. Always true if its module is not known."""
    module = step.module
    if type(module) is nn.ModuleList:  # a new list in each step, of several modules
        module = next(module.children(), None)
    if module is None:
        return True
    seen = _seen.setdefault(module, set())
    new = what not in seen
    seen.add(what)
    return new


def warn_of_passes_that_differ(step: Step) -> None:
    """Compare the prediction at r = 0 with the clean one. They differ if a pass has noise or state that the step cannot control. 1 F."""
    with torch.no_grad():
        again = wide(step.network(step.x, constant=True))
    clean = wide(step.target)
    mask = step.mask_of(clean)
    difference = (again - clean).abs() if mask is None else torch.where(mask, (again - clean).abs(), 0)
    # Kernels that add in a different order each time differ by rounding.
    tolerance = 1e2 * torch.finfo(step.target.dtype).eps * (1 + clean.nan_to_num(0.0, 0.0, 0.0).abs().amax() if clean.numel() else 1)
    if (difference.nan_to_num(0.0) > tolerance).any():
        warnings.warn(
            f"two passes of the same input differ by up to {difference.nan_to_num(0.0).max():.2g} without any r, so the penalty includes "
            "this difference. Likely causes: noise from the network's own generator (use the default ones of torch, Python or numpy), "
            "state inside an object or a container (keep it in an attribute or a buffer), or a module that was not passed "
            "(module=[model, other])",
            stacklevel=4,
        )


def warn_of_misread_outputs(step: Step, *, classes: bool) -> None:
    """Warn of logits (N, H, W, C) that are read as H classes, and of outputs (N, T) to which a mask of positions (N, T) does not apply.

    Args:
        step: Step whose clean pass is checked.
        classes: Whether the outputs have classes.
    """
    logits, inputs = step.target, step.x.shape
    first, last = logits.shape[1:-1], logits.shape[2:]

    def are_positions(shape: torch.Size) -> bool:
        return len(set(shape)) == 1 or shape in (inputs[1:-1], inputs[2:])

    if classes and step.class_dim is None and logits.dim() > 3 and are_positions(first) and not are_positions(last):
        warnings.warn(
            f"logits of shape {tuple(logits.shape)} are read as {first[0]} classes at {' × '.join(map(str, last))} positions: pass "
            "class_dim=-1 if the classes are last, and class_dim=1 if they are not",
            stacklevel=4,
        )
    if step.mask is not None and logits.dim() == 2 and logits.shape == inputs[:2] and step.mask_of(logits) is None:
        warnings.warn(
            f"outputs of shape {tuple(logits.shape)} are read as {logits.shape[1]} outputs of each example, to which the mask of the "
            "inputs does not apply. If there is one output for each position, pass output_mask, too",
            stacklevel=4,
        )


def warn_of_hidden_half(step: Step) -> None:
    """Warn of half precision inside a network whose output is float32: finite differences are noise in half precision. 1 F."""
    with torch.enable_grad():
        outputs = step.network(step.x.detach().requires_grad_(), constant=True)
    if hidden_half(outputs):
        warnings.warn(
            "the network computes in half precision although its output is float32. Finite differences are noise in half precision: use "
            "direction 'random_margin', 'margin' or 'exact', or turn the network's autocast off",
            stacklevel=4,
        )


def warn_of_rounding(step: Step, r: Tensor) -> None:
    """Warn if x's dtype rounds r away in x + r."""
    if step.x.dtype not in (torch.float16, torch.bfloat16) or not r.numel():
        return
    added = wide(step.x + r) - wide(step.x)
    lost = (added - wide(r)).norm() / wide(r).norm().clamp(min=torch.finfo(torch.float32).tiny)
    if lost > 0.25:
        warnings.warn(
            f"x is {step.x.dtype}, and in this dtype x + r loses {100 * lost:.0f} % of r to rounding. Pass x in float32 (under "
            "torch.autocast, or to a network whose first layer converts it), or raise eps",
            stacklevel=5,
        )
