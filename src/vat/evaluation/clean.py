"""Measures of a network on clean inputs, without an attack."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vat import local_distributional_smoothness
from vat.attacks import cross_entropy as cross_entropies
from vat.attacks import logit_difference
from vat.evaluation.results import Result, to_bits
from vat.functional import as_classes, probabilities
from vat.network import Forward
from vat.norms import L2
from vat.step import Key

CALIBRATION_BINS = 15

NOT_FINITE = "{}: its outputs on clean inputs are NaN or infinite: evaluate needs finite logits"

LIPSCHITZ_POINTS = 8  # random points of the ball; its centre is one more


def clean_measures(network: Forward, x: Tensor, y: Tensor, *, lds_eps: float, key: Key, generator: torch.Generator) -> Result:
    """Sums over a batch of the measures without an attack.

    Returns:
        Plain values:

            - `correct`: a 0 or 1 for each example
            - `cross_entropy`: sum over the examples
            - `lds`: sum of LDS with radius `lds_eps`
            - `confidence`: for each calibration bin the number of examples, the sum of their confidences, and the number of correct ones
            - `measured`: number of examples that are correct and have a gradient. The next three are sums over these
            - `margin`: logit of the class minus the best other logit
            - `distance`: first-order L2 distance to the nearest boundary, that is margin / gradient
            - `lipschitz`: largest L2 gradient of the margin found in the ball of radius `lds_eps`. It is a lower bound of the local
              Lipschitz constant of the margin

    Raises:
        ValueError: If the outputs are not finite, or are probabilities.
    """
    with torch.no_grad():
        logits = as_classes(network(x))
    _check_outputs(logits)
    correct = logits.argmax(1) == y
    margin = -logit_difference(logits, y)
    steepest = slope = _slope(network, x, y) if x.is_floating_point() else torch.zeros_like(margin)  # token numbers have no gradient
    for _ in range(LIPSCHITZ_POINTS if x.is_floating_point() else 0):
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        radius = torch.rand((len(x), *[1] * (x.dim() - 1)), generator=generator, device=x.device, dtype=x.dtype)
        steepest = torch.maximum(steepest, _slope(network, x + lds_eps * radius * L2().sample(noise), y))
    measured = correct & (slope > 0)
    chance, chosen = probabilities(logits).max(1)
    in_bin = (chance * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    bins = torch.zeros(CALIBRATION_BINS, 3, dtype=torch.float64, device=x.device)
    module = None if isinstance(network, nn.Module) else ()  # a function has no module to protect: `evaluating` leaves it as it is
    bins.index_add_(0, in_bin, torch.stack([torch.ones_like(chance), chance, (chosen == y).to(chance)], 1).double())
    return {
        "correct": to_bits(correct),
        "cross_entropy": float(cross_entropies(logits.double(), y).sum()),
        "lds": float(local_distributional_smoothness(network, x, eps=lds_eps, key=key, module=module).double().sum()),
        "confidence": bins.tolist(),
        "measured": int(measured.sum()),
        "margin": float(margin[measured].double().sum()),
        "distance": float((margin[measured] / slope[measured]).double().sum()),
        "lipschitz": float(steepest[measured].double().sum()),
    }


def _check_outputs(logits: Tensor) -> None:
    if not logits.isfinite().all():
        raise ValueError(NOT_FINITE.format("the network"))
    if len(logits) > 1 and (logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-4).all():
        raise ValueError(
            "the network's outputs must be logits, got probabilities: each is >= 0 and they sum to 1. Remove the softmax, because its "
            "rounding hides gradients from attacks"
        )


def gradient_of(network: Forward, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Gradient of the loss at each input, in the shape of `x`."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value = loss(as_classes(network(leaf)).double(), y).sum()
        gradient = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
    return torch.zeros_like(x) if gradient is None else gradient


def _slope(network: Forward, x: Tensor, y: Tensor) -> Tensor:
    """L2 length (N,) of the gradient of the margin."""
    return L2().length(gradient_of(network, x, y, logit_difference)).flatten()
