"""Checks whether a network is robust or an attack failed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vat.attacks import APGD, FGM, PGD, Attack, Threat, predictions
from vat.attacks import cross_entropy as cross_entropies
from vat.evaluation.clean import gradient_of
from vat.evaluation.results import Result
from vat.functional import as_classes
from vat.network import Forward
from vat.norms import L2, LInf


def sanity_probe(
    network: Forward,
    x: Tensor,
    y: Tensor,
    *,
    bounds: tuple[float, float] | None,
    grid: Mapping[str, Sequence[float]],
    generator: torch.Generator,
) -> Result:
    """Measure signs of false robustness (Carlini et al., arXiv 1902.06705, section 4), on correctly classified examples.

    Args:
        network: Function x -> logits.
        x: Inputs (N, …).
        y: Classes of the inputs, (N,).
        bounds: Smallest and largest value of inputs.
        grid: Radii for each norm.
        generator: Generator of all random numbers.

    Returns:
        The measured values by name:

        - `examples`: number of examples.
        - `noise`: largest difference between two passes, in standard deviations of the logits.
        - `no_gradient`: share of examples on which the gradient of the cross entropy is zero.
        - `huge`: largest possible ε in L∞. `standing_huge`: share of examples that are robust to it.
        - `half`: an L∞ ε at which one step misclassifies about half. `standing_one`, `standing_many`: shares that are robust after one step
          and after 40.
        - `spread`: largest minus smallest value of the inputs. `std`: their standard deviation. `size`: numbers in an input.
    """
    if len(x) == 0:
        return {"examples": 0}
    with torch.no_grad():
        one, other = as_classes(network(x)), as_classes(network(x))
    spread = float(x.max() - x.min())
    huge = 10 * spread if bounds is None else bounds[1] - bounds[0]
    gradient = gradient_of(network, x, y, cross_entropies)

    def share_standing(attack: Attack, rows: Tensor, radius: float) -> Tensor:
        point = attack(network, x[rows], y[rows], Threat(LInf(), radius, bounds), generator)
        return rows[predictions(network, point) == y[rows]]

    everyone = torch.arange(len(x), device=x.device)
    standing = everyone
    for loss in ("cross_entropy", "dlr"):
        if len(standing):
            standing = share_standing(APGD(steps=40, loss=loss), standing, huge)
    half, after_one = huge, everyone
    for halvings in range(12, -1, -1):
        half = huge / 2**halvings
        after_one = share_standing(FGM(), everyone, half)
        if len(after_one) <= len(x) / 2:
            break
    after_many = share_standing(PGD(steps=40), everyone, half)
    return {
        "examples": len(x),
        "noise": float((one - other).abs().max() / one.std().clamp(min=1e-30)),
        "no_gradient": float((L2().length(gradient).flatten() == 0).double().mean()),
        "huge": huge,
        "standing_huge": len(standing) / len(x),
        "half": half,
        "standing_one": len(after_one) / len(x),
        "standing_many": len(after_many) / len(x),
        "spread": spread,
        "std": float(x.std(correction=0)),
        "size": x[0].numel(),
    }


def warnings_of(probe: Mapping[str, Any], grid: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """The warnings that follow from a `sanity_probe`, by the name of the check. Empty without any fault."""
    if not probe["examples"]:
        return {"no_example_right": "no example of the first batch is classified correctly, so attacks show nothing"}
    found = {}
    if probe["noise"] > 1e-3:
        found["randomness"] = (
            f"two passes over the same inputs differ by {probe['noise']:.2g} standard deviations of the logits: the model is random. This "
            "hides gradients and misclassifies examples by chance. Call eval(), or attack the mean of many passes"
        )
    if probe["no_gradient"] > 0.05:
        found["zero_gradients"] = (
            f"the gradient of the cross entropy is zero on {probe['no_gradient']:.0%} of the examples: it is masked (a saturated softmax, "
            "rounding, a step function), and attacks that follow it show nothing. Trust only apgd_dlr and square"
        )
    if probe["standing_huge"] > 0.01:
        found["huge_eps"] = (
            f"{probe['standing_huge']:.0%} of the examples resist ε = {probe['huge']:g} in L∞, which can turn any input into any other. So "
            "the attack fails, and the examples are not robust"
        )
    if probe["standing_many"] > probe["standing_one"] + 0.02:
        found["more_steps"] = (
            f"more steps do not help: at ε = {probe['half']:.3g} in L∞, {probe['standing_many']:.0%} resist 40 steps along the gradient, "
            f"and {probe['standing_one']:.0%} resist one step. So the gradient does not lead to a high loss"
        )
    for norm, radii in grid.items():
        longest = 1.0 if norm == "linf" else probe["size"] ** 0.5
        if max(radii, default=0) >= longest * probe["spread"]:
            found[f"units_{norm}"] = (
                f"ε = {max(radii):g} in {norm} is not smaller than the spread of the inputs, {probe['spread']:.3g} from least to greatest. "
                "Does it have other units than the inputs, for example grey levels of 255?"
            )
        elif 0 < max(radii, default=0) < 1e-3 * longest * probe["std"]:
            found[f"units_{norm}"] = (
                f"ε = {max(radii):g} in {norm} is less than a thousandth of the inputs' standard deviation, {probe['std']:.3g}. Every "
                "network is robust to it. Does it have other units than the inputs?"
            )
    return found
