"""Networks over a plane in input space."""

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from vat import local_distributional_smoothness
from vat.functional import probabilities
from vat.plots.style import MARKERS
from vat.step import Key

CLASS_COLOURS = ("#5e3c99", "#e66101")  # the ends of PuOr: they differ for colour-blind readers and in grey


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
        networks: Networks by name. Each maps x = z @ embedding (N, D) to two logits. They are put into evaluation mode.
        z: Training points in the plane (N, 2).
        y: Classes of the points (N,).
        embedding: Map from the plane to the input space (2, D).
        eps: Radius of LDS, in the units of x.
        title: Title of the figure.
        resolution: Number of points on each side of the grid.

    Returns:
        A figure with a column for each network: p(class 1 | x) above, LDS below. All columns have the same scales.
    """
    low, high = z.amin(0) - 0.6, z.amax(0) + 0.6
    horizontal, vertical = (torch.linspace(float(low[i]), float(high[i]), resolution) for i in (0, 1))
    grid = torch.cartesian_prod(horizontal, vertical)
    x = grid.to(embedding.device) @ embedding
    chances, smoothness = {}, {}
    for name, network in networks.items():
        network.eval()
        with torch.no_grad():
            chances[name] = probabilities(network(x))[:, 1].view(resolution, resolution).T.cpu().numpy()
        lds = local_distributional_smoothness(network, x, eps=eps, key=Key(0))
        smoothness[name] = lds.view(resolution, resolution).T.cpu().numpy()
    worst = max(float(lds.max()) for lds in smoothness.values()) or 1.0  # LDS of a constant network is 0, but contour levels must differ

    across, up = horizontal.numpy(), vertical.numpy()
    figure = Figure(figsize=(3.2 * len(networks) + 0.9, 6.2), layout="constrained")
    axes = figure.subplots(2, len(networks), squeeze=False, sharex=True, sharey=True)
    for column, name in enumerate(networks):
        top, bottom = axes[0, column], axes[1, column]
        upper = top.contourf(across, up, chances[name], levels=torch.linspace(0, 1, 11).tolist(), cmap="PuOr_r")
        lower = bottom.contourf(across, up, smoothness[name], levels=torch.linspace(0, worst, 13).tolist(), cmap="viridis")
        for panel in (top, bottom):
            panel.contour(across, up, chances[name], levels=[0.5], colors="black", linewidths=1.2)
            _points(panel, z, y)
        top.set_title(name)
        if column == len(networks) - 1:
            figure.colorbar(upper, ax=top, label="p(class 1 | x)", ticks=[0, 0.5, 1])
            figure.colorbar(lower, ax=bottom, label=f"LDS at ε = {eps:g}, nats", format="%.2f")
    figure.suptitle(title)
    return figure


def _points(panel: Axes, z: Tensor, y: Tensor) -> None:
    for label in (0, 1):
        of_class = z[y == label].numpy()
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
