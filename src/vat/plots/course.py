"""The course of a run."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.figure import Figure

from vat.plots.style import COLOURS, MARKERS, new_figure, tidy


def curves_figure(history: Sequence[Mapping[str, float]]) -> Figure:
    """Curves of a run: validation error, the terms of the loss, the regularizers' diagnostics. A panel without data is left out.

    Args:
        history: Records of logged values by name, each with its `step`.
    """
    names = list({name: None for record in history for name in record})
    terms = [name for name in names if name.startswith("train/") and name.count("/") == 1 and name not in ("train/lr", "train/loss")]
    kl = [name for name in names if name.startswith("train/") and name.rsplit("/", 1)[-1] in ("lds", "kl_random")]
    panels = {
        "error, %": [("val/error", "validation")],
        "cross entropy": [("val/cross_entropy", "validation"), ("train/cross_entropy", "training, labelled")],
        "term of the loss": [(name, name.removeprefix("train/")) for name in terms if name != "train/cross_entropy"],
        "KL, nats": [(name, name.removeprefix("train/").replace("/", ": ")) for name in kl],
    }
    panels = {label: found for label, lines in panels.items() if (found := [line for line in lines if line[0] in names])}
    figure = new_figure(6.4, 1.9 * len(panels) + 0.9)
    column = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (label, lines) in zip(column, panels.items(), strict=True):
        tidy(axes)
        for (name, said), colour, marker in zip(lines, cycle(COLOURS), cycle(MARKERS)):  # the cycles have no end
            scale = 100 if label == "error, %" else 1
            points = [(record["step"], scale * record[name]) for record in history if math.isfinite(record.get(name, math.nan))]
            dots = marker if len(points) <= 40 else ""
            axes.plot(*zip(*points, strict=True), color=colour, marker=dots, markersize=4, label=said)
        axes.set_ylabel(label)
        values = [record[name] for record in history for name, _ in lines if record.get(name, 0) > 0]
        if label != "term of the loss" and values and max(values) > 30 * min(values):
            axes.set_yscale("log")
        axes.legend(frameon=False, fontsize=8.5)
    column[-1].set_xlabel("optimizer step")
    figure.suptitle("Course of the run", fontsize=11)
    return figure
