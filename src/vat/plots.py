"""Figures: data in, `Figure` out, nothing read or written."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from vat import local_distributional_smoothness
from vat.functional import probabilities
from vat.step import Key

MARKERS = ("o", "^")
CLASS_COLOURS = ("#5e3c99", "#e66101")  # the ends of PuOr: told apart by the colour-blind, and in grey


def plane_figure(
    networks: Mapping[str, nn.Module],
    z: Tensor,
    y: Tensor,
    embedding: Tensor,
    *,
    eps: float,
    title: str,
    resolution: int = 120,
) -> Figure:
    """Decision boundary and LDS of several networks over a plane in input space: DSVAT's figure.

    Args:
        networks: by name; each maps x = z @ embedding (N, D) to two logits. Put into evaluation mode.
        z: training points in the plane (N, 2).
        y: their classes (N,).
        embedding: (2, D).
        eps: radius of LDS.
        title: of the figure.
        resolution: points a side.

    Returns:
        A figure with a column for each network: p(class 1 | x) above, LDS below, on scales that the columns share.
    """
    low, high = z.amin(0) - 0.6, z.amax(0) + 0.6
    horizontal, vertical = (torch.linspace(float(low[i]), float(high[i]), resolution) for i in (0, 1))
    grid = torch.cartesian_prod(horizontal, vertical)
    x = grid @ embedding
    chances, smoothness = {}, {}
    for name, network in networks.items():
        network.eval()
        with torch.no_grad():
            chances[name] = probabilities(network(x))[:, 1].view(resolution, resolution).T
        lds = local_distributional_smoothness(network, x, eps=eps, key=Key(0))
        smoothness[name] = lds.view(resolution, resolution).T
    worst = max(float(lds.max()) for lds in smoothness.values())

    figure = Figure(figsize=(3.2 * len(networks) + 0.9, 6.2), layout="constrained")
    axes = figure.subplots(2, len(networks), squeeze=False, sharex=True, sharey=True)
    for column, name in enumerate(networks):
        top, bottom = axes[0, column], axes[1, column]
        upper = top.contourf(horizontal, vertical, chances[name], levels=torch.linspace(0, 1, 11).tolist(), cmap="PuOr_r")
        lower = bottom.contourf(horizontal, vertical, smoothness[name], levels=torch.linspace(0, worst, 13).tolist(), cmap="viridis")
        for panel in (top, bottom):
            panel.contour(horizontal, vertical, chances[name], levels=[0.5], colors="black", linewidths=1.2)
            _points(panel, z, y)
        top.set_title(name)
        if column == len(networks) - 1:
            figure.colorbar(upper, ax=top, label="p(class 1 | x)", ticks=[0, 0.5, 1])
            figure.colorbar(lower, ax=bottom, label=f"LDS at ε = {eps:g}, nats", format="%.2f")
    figure.suptitle(title)
    return figure


def _points(panel: Axes, z: Tensor, y: Tensor) -> None:
    for label in (0, 1):
        of_class = z[y == label]
        panel.scatter(
            of_class[:, 0],
            of_class[:, 1],
            marker=MARKERS[label],
            color=CLASS_COLOURS[label],
            edgecolors="white",
            s=42,
            zorder=3,
        )
    panel.set_aspect("equal")
    panel.tick_params(labelsize=8)


def robustness_figure(robust: Mapping[str, Mapping[str, Any]], clean: float, *, unit: str) -> Figure:
    """Accuracy against ε, a panel for each norm and a line for each attack.

    Args:
        robust: for each norm `eps`, the radii, and `accuracy`, for each attack those at the radii; as `vat.robustness.evaluate` returns it.
        clean: accuracy at ε = 0.
        unit: of ε.
    """
    figure = Figure(figsize=(5.2 * max(1, len(robust)), 4), layout="constrained")
    panels = figure.subplots(1, max(1, len(robust)), squeeze=False, sharey=True)[0]
    for panel, (norm, found) in zip(panels, robust.items(), strict=False):
        for name, accuracies in found["accuracy"].items():
            worst = name == "worst"
            style = {"color": "black", "linewidth": 2.2, "zorder": 3} if worst else {"linewidth": 1.2, "marker": "o", "markersize": 3}
            panel.plot([0, *found["eps"]], [100 * a for a in (clean, *accuracies)], label="worst case" if worst else name, **style)
        panel.set(title=norm, xlabel="ε", ylim=(0, 102))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    panels[0].set_ylabel("accuracy, %")
    figure.suptitle(f"ε in {unit}", fontsize=9)
    return figure


def adversarial_figure(
    x: Tensor,
    adversarial: Tensor,
    names: Sequence[tuple[str, str]],
    *,
    bounds: tuple[float, float] | None,
    title: str,
) -> Figure:
    """Images, what was added to them, and what became of them, a column each.

    Args:
        x: images (N, C, H, W) of one or three channels.
        adversarial: what they were changed to, likewise.
        names: of the class of each, and of the class it is taken for.
        bounds: black and white; the least and greatest value shown if None.
        title: of the figure.
    """
    low, high = bounds or (float(min(x.min(), adversarial.min())), float(max(x.max(), adversarial.max())))
    change = adversarial - x
    largest = float(change.abs().max()) or 1.0
    rows = [(x - low) / (high - low), 0.5 + change / (2 * largest), (adversarial - low) / (high - low)]
    figure = Figure(figsize=(1.3 * len(x) + 0.4, 4.6), layout="constrained")
    panels = figure.subplots(3, len(x), squeeze=False)
    for row, images in enumerate(rows):
        for column, image in enumerate(images.clamp(0, 1)):
            panel = panels[row, column]
            panel.imshow((image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy(), cmap="gray", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
    for column, (true, taken) in enumerate(names):
        panels[0, column].set_title(true, fontsize=9)
        panels[2, column].set_title(taken, fontsize=9)
    figure.suptitle(f"{title}: image and class, perturbation (grey is none, full scale ±{largest:.2g}), result and prediction", fontsize=9)
    return figure


def study_figure(found: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str) -> Figure:
    """Worst-case accuracy against ε for several methods, a panel for each norm: the mean over seeds, and a band of one standard deviation.

    Args:
        found: for each method what `vat.robustness.evaluate` returned for each seed, all at the same radii.
        title: of the figure.
    """
    norms = list(next(iter(found.values()))[0]["robust"])
    figure = Figure(figsize=(5.2 * len(norms), 4), layout="constrained")
    panels = figure.subplots(1, len(norms), squeeze=False, sharey=True)[0]
    for panel, norm in zip(panels, norms, strict=True):
        for method, seeds in found.items():
            curves = torch.tensor([[one["clean"]["accuracy"], *one["robust"][norm]["accuracy"]["worst"]] for one in seeds]) * 100
            mean, spread = curves.mean(0), curves.std(0, correction=min(1, len(seeds) - 1))
            radii = [0, *seeds[0]["robust"][norm]["eps"]]
            (line,) = panel.plot(radii, mean.tolist(), marker="o", markersize=3, label=method)
            panel.fill_between(radii, (mean - spread).tolist(), (mean + spread).tolist(), alpha=0.15, color=line.get_color(), linewidth=0)
        panel.set(title=norm, xlabel="ε", ylim=(0, 102))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy under the worst of all attacks, %")
    panels[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure
