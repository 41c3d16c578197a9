"""Confusions, calibration and the error of each class."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from vat.plots.style import COLOURS, WRONG, new_figure, shown_names, tidy


def confusion_figure(counts: Tensor, class_names: Sequence[str]) -> Figure:
    """Confusion matrix: the share of each class (rows) that was predicted as each class (columns). Only mistakes are coloured.

    Args:
        counts: Confusion matrix, int64 (classes, classes).
        class_names: Names of the classes.
    """
    shares = 100 * counts / counts.sum(1, keepdim=True).clamp_min(1)
    mistakes = shares.clone().fill_diagonal_(0)
    size = max(4.2, 0.5 * len(counts) + 1.8)
    figure = new_figure(size + 0.9, size)
    axes = figure.subplots()
    drawn = axes.imshow(mistakes.numpy(), cmap="Oranges", vmin=0, vmax=max(1.0, float(mistakes.max())))
    for i in range(len(counts)):
        axes.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, facecolor="#dddddd", edgecolor="none"))
    if len(counts) <= 20:
        for i, row in enumerate(shares.tolist()):
            for j, share in enumerate(row):
                dark = i != j and share > 0.6 * float(mistakes.max())
                text = "" if counts[i, j] == 0 else f"{share:.0f}" if share >= 9.95 else f"{share:.1f}"
                colour = "white" if dark else "#444444" if i == j else "black"
                axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour, fontweight="bold" if i == j else "normal")
        ticks = range(len(counts))
        long, names = max(map(len, class_names)) > 3, shown_names(class_names)
        axes.set_xticks(
            ticks, names, rotation=45 if long else 0, ha="right" if long else "center", rotation_mode="anchor" if long else None
        )
        axes.set_yticks(ticks, names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="class", title="Confusion, % of each class")
    figure.colorbar(drawn, ax=axes, label="mistakes, %", shrink=0.8)
    return figure


def reliability_figure(chances: Tensor, y: Tensor) -> Figure:
    """Reliability diagram: accuracy against confidence, and how often each confidence occurs.

    Args:
        chances: Probabilities (N, classes).
        y: Labels (N,).
    """
    bins = 15  # of equal width, as in the calibration error
    confidence, said = chances.max(1)
    right = (said == y).to(confidence.dtype)
    edges = torch.linspace(0, 1, bins + 1)
    place = torch.bucketize(confidence, edges[1:-1].to(confidence))
    number = torch.bincount(place, minlength=bins)
    claimed, reached = (torch.bincount(place, weights=v, minlength=bins) / number.clamp_min(1) for v in (confidence, right))
    error = float((number / len(y) * (claimed - reached).abs()).sum())
    occurs = (number > 0).tolist()
    centres = ((edges[1:] + edges[:-1]) / 2).tolist()

    figure = new_figure(5, 5.6)
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    for panel in (above, below):
        tidy(panel)
    above.plot([0, 1], [0, 1], color="#777777", linestyle="--", linewidth=1, zorder=4)
    for i in range(bins):
        if occurs[i]:
            over = float(claimed[i] - reached[i]) > 0
            above.bar(centres[i], float(reached[i]), width=0.92 / bins, color=COLOURS[0], alpha=0.8, zorder=2)
            ends = [float(reached[i]), float(claimed[i])]
            above.plot([centres[i]] * 2, ends, color=WRONG if over else "black", linewidth=2.5, solid_capstyle="butt", zorder=3)
    above.set(ylabel="accuracy", ylim=(0, 1.02), title=f"Reliability: calibration error {error:.3f}")
    legend = [
        Patch(color=COLOURS[0], alpha=0.8, label="accuracy"),
        Patch(color=WRONG, label="overconfident by"),
        Patch(color="black", label="underconfident by"),
    ]
    above.legend(handles=legend, framealpha=0.85, edgecolor="none", loc="upper left", fontsize=8.5)  # bars may be behind the legend
    below.bar(centres, (100 * number / len(y)).tolist(), width=0.92 / bins, color="#999999")
    below.set(xlabel="confidence", ylabel="examples, %", xlim=(0, 1))
    return figure


def class_error_figure(counts: Tensor, class_names: Sequence[str]) -> Figure:
    """Error of each class with its 95 % interval (Wilson's). The class with the largest error is at the top.

    Args:
        counts: Confusion matrix, int64 (classes, classes).
        class_names: Names of the classes.
    """
    total = counts.sum(1).double()
    seen = torch.nonzero(total)[:, 0]
    literal = shown_names(class_names)
    n, names = total[seen], [literal[i] for i in seen.tolist()]
    share = 1 - counts.diagonal().double()[seen] / n
    z = 1.96
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)).sqrt()
    order = share.argsort(descending=True).tolist()
    overall = 100 * float(1 - counts.diagonal().sum() / counts.sum())
    figure = new_figure(6, max(2.4, 0.3 * len(order) + 1.3))
    axes = tidy(figure.subplots())
    for place, i in enumerate(order):
        value, low, high = (100 * float(v) for v in (share[i], middle[i] - half[i], middle[i] + half[i]))
        axes.barh(place, value, color=COLOURS[0], alpha=0.85)
        axes.plot([max(0.0, low), high], [place, place], color="black", linewidth=1.2)
    axes.axvline(overall, color=WRONG, linewidth=1.4, linestyle="--", label=f"all: {overall:.2f} %")
    axes.set_yticks(range(len(order)), [names[i] for i in order])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="error, % (bar: 95 % interval)", title="Error of each class")
    axes.legend(frameon=False, loc="lower right")
    return figure
