"""Which features a perturbation changes, and by how much predictions change."""

import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vat.plots.style import COLOURS, new_figure, shown_names, tidy


def feature_figure(r: Tensor, *, names: Sequence[str], eps: float, most: int = 20) -> Figure:
    """The features that r changes most: mean |r| over the examples. The largest is at the top.

    Args:
        r: Perturbations (N, features).
        names: Names of the features.
        eps: Length of r, for the title.
        most: Largest number of features to show.
    """
    size, place = r.abs().mean(0).topk(min(most, r.shape[1]))
    figure = new_figure(6, 0.26 * len(size) + 1.3)
    axes = tidy(figure.subplots())
    literal = shown_names(names)
    axes.barh(range(len(size)), size.tolist(), color=COLOURS[0])
    axes.set_yticks(range(len(size)), [literal[i] for i in place.tolist()])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(y=0.02)
    axes.set(xlabel="mean |r|", title=f"Features that the perturbation moves, ‖r‖ = {eps:g}")
    return figure


def kl_figure(kl: Tensor, at_random: Tensor, *, eps: float) -> Figure:
    """Histogram of the change of predictions: for the r that the method finds, and for a random r of the same length.

    Args:
        kl: Divergence at the r that the method finds (N,), in nats.
        at_random: Divergence at a random r (N,), in nats.
        eps: Length of r.
    """
    smallest = 1e-8
    kl, at_random = (v.double().clamp_min(smallest).log10() for v in (kl, at_random))
    low, high = float(min(kl.min(), at_random.min())), float(max(kl.max(), at_random.max()))
    edges = torch.linspace(math.floor(low), math.ceil(high + 1e-9), 41).tolist()
    figure = new_figure(6.2, 3.6)
    axes = tidy(figure.subplots())
    for values, name, colour in ((at_random, "random r", COLOURS[1]), (kl, "r that is found", COLOURS[0])):
        axes.hist(values.tolist(), bins=edges, color=colour, alpha=0.35)
        axes.hist(
            values.tolist(),
            bins=edges,
            histtype="step",
            color=colour,
            linewidth=1.6,
            label=f"{name}: median {10 ** float(values.median()):.2g}",
        )
    axes.xaxis.set_major_formatter(lambda exponent, _: f"$10^{{{exponent:g}}}$" if exponent == round(exponent) else "")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes.set(xlabel=f"KL of the prediction at ‖r‖ = {eps:g}, nats", ylabel="examples", title="How far predictions move")
    axes.legend(frameon=False, loc="upper left")
    axes.margins(y=0.22)
    return figure
