"""Images and their perturbations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vat.plots.style import WRONG, new_figure, shown_names


def perturbation_figure(
    x: Tensor, r: Tensor, before: Tensor, after: Tensor, kl: Tensor, y: Tensor, *, class_names: Sequence[str], eps: float
) -> Figure:
    """Up to eight images, their r, their sum, and the predictions for image and sum. Columns are in the order of increasing KL.

    Args:
        x: Images (N, C, H, W) of one or three channels.
        r: Perturbations (N, C, H, W).
        before: Probabilities (N, classes) at x.
        after: Probabilities (N, classes) at x + r.
        kl: Divergence of the two (N,), in nats.
        y: Labels (N,).
        class_names: Names of the classes.
        eps: Length of r, for the title.
    """
    order = kl.argsort()
    chosen = order[torch.linspace(0, len(order) - 1, min(8, len(order))).round().long()]
    figure, names = new_figure(1.3 * len(chosen) + 0.9, 5.6), shown_names(class_names)
    axes, reach = _perturbed(figure, x[chosen], r[chosen], None)
    for column, i in enumerate(chosen.tolist()):
        for row, chances in ((0, before), (2, after)):
            said = int(chances[i].argmax())
            right = said == int(y[i])
            text = f"{names[said]}\n{100 * float(chances[i, said]):.0f} %"
            axes[row, column].set_title(text, fontsize=8.5, color="black" if right else WRONG, fontweight="normal" if right else "bold")
        axes[1, column].set_title(f"KL {float(kl[i]):.2g}", fontsize=8.5)
    for row, name in enumerate(("input", f"r, up to {reach:.2g}" + (" (orange +)" if x.shape[1] == 1 else ""), "input + r")):
        axes[row, 0].set_ylabel(name)
    figure.suptitle(f"Virtual adversarial perturbations, ‖r‖ = {eps:g}; mistakes in bold", fontsize=11)
    return figure


def _perturbed(figure: Figure, x: Tensor, r: Tensor, bounds: tuple[float, float] | None) -> tuple[Any, float]:
    """Draw images (N, C, H, W), r and their sum, a column for each image.

    Black and white are the bounds, or the least and greatest value of the images.

    Returns:
        The panels, and the largest |r|, which has the full colour.
    """
    low, high = bounds or (float(x.amin()), float(x.amax()))
    reach = float(r.abs().amax()) or 1.0
    panels = figure.subplots(3, len(x), squeeze=False)
    for row, pictures in enumerate((x, r, x + r)):
        for panel, picture in zip(panels[row], pictures, strict=True):
            if row == 1:  # a diverging colour map, because the sign of r matters: white is 0
                panel.imshow(_picture((picture / reach + 1) / 2), cmap="PuOr_r", vmin=0, vmax=1, interpolation="nearest")
            else:
                panel.imshow(_picture((picture - low) / ((high - low) or 1)), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
    return panels, reach


def _picture(image: Tensor) -> np.ndarray:
    """Convert (C, H, W) to matplotlib's shape: (H, W) for one channel, else (H, W, 3)."""
    image = image.float().clamp(0, 1)
    return (image[0] if len(image) == 1 else image[:3].movedim(0, -1)).numpy()


def adversarial_figure(
    x: Tensor,
    adversarial: Tensor,
    names: Sequence[tuple[str, str]],
    *,
    bounds: tuple[float, float] | None,
    title: str,
) -> Figure:
    """Images, their perturbations, and the adversarial examples, a column for each image.

    Args:
        x: Images (N, C, H, W) of one or three channels.
        adversarial: Adversarial examples (N, C, H, W).
        names: Name of each image's class, and of the predicted class of its adversarial example.
        bounds: Values drawn as black and white. None: the images' least and greatest value.
        title: Title of the figure.
    """
    figure = new_figure(1.3 * len(x) + 0.4, 4.6)
    panels, largest = _perturbed(figure, x, adversarial - x, bounds)
    for column, (true, taken) in enumerate(map(shown_names, names)):
        panels[0, column].set_title(true, fontsize=9)
        panels[2, column].set_title(taken, fontsize=9)
    sign = "orange +, " if x.shape[1] == 1 else ""
    figure.suptitle(f"{title}: image and class, perturbation ({sign}full scale ±{largest:.2g}), result and prediction", fontsize=9)
    return figure
