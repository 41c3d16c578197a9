"""Accuracy under attack."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.figure import Figure

from vat.plots.style import COLOURS, MARKERS, new_figure, tidy


def robustness_figure(robust: Mapping[str, Mapping[str, Any]], clean: float, *, unit: str) -> Figure:
    """Accuracy against ε, a panel for each norm and a line for each attack.

    Args:
        robust: For each norm the radii `eps`, and `accuracy`: for each attack its accuracy at each radius.
            `vat.evaluation.robustness.evaluate` returns it.
        clean: Accuracy at ε = 0.
        unit: Unit of ε.
    """
    figure = new_figure(5.2 * max(1, len(robust)), 4)
    panels = figure.subplots(1, max(1, len(robust)), squeeze=False, sharey=True)[0]
    for panel, (norm, found) in zip(panels, robust.items(), strict=False):
        for (name, accuracies), colour, marker in zip(found["accuracy"].items(), cycle(COLOURS[:-1]), cycle(MARKERS)):
            worst = name == "worst"
            style = {"color": "black", "linewidth": 2.2, "zorder": 3} if worst else {"color": colour, "marker": marker, "markersize": 4}
            panel.plot([0, *found["eps"]], [100 * a for a in (clean, *accuracies)], label="worst case" if worst else name, **style)
        tidy(panel).set(title=norm, xlabel="ε", ylim=(0, 102))
        panel.legend(fontsize=8)
    panels[0].set_ylabel("accuracy, %")
    figure.suptitle(f"ε in {unit}", fontsize=9)
    return figure


def study_figure(tables: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> Figure:
    """Clean and worst-case accuracy of a study. Each table is a row of panels, each norm a panel, each method a line, each seed a point.

    Args:
        tables: For each table and method, the results of `vat.evaluation.robustness.evaluate`, one for each seed. The first result of a
            table gives its radii.
    """
    first = {name: next(iter(found.values()))[0] for name, found in tables.items()}
    norms = list(next(iter(first.values()))["robust"])
    heights = [1.0 + 0.24 * len(found) for found in tables.values()]
    figure = new_figure(1.2 + 3.6 * len(norms), sum(heights) + 0.3)
    panels = figure.subplots(len(tables), len(norms), squeeze=False, sharex=True, sharey="row", height_ratios=heights)
    for row, (name, found) in zip(panels, tables.items(), strict=True):
        for panel, norm in zip(row, norms, strict=True):
            radii = first[name]["robust"][norm]["eps"]
            for at, (colour, marker) in zip(range(len(radii) + 1), cycle(zip(("#8c8c8c", *COLOURS), ("|", *MARKERS), strict=False))):
                for place, seeds in enumerate(found.values()):
                    values = [(one["clean"]["accuracy"], *one["robust"][norm]["accuracy"]["worst"])[at] * 100 for one in seeds]
                    label = None if place else "clean" if at == 0 else f"ε = {radii[at - 1]:g}"
                    panel.plot(values, [place] * len(values), linestyle="none", marker=marker, markersize=5, color=colour, label=label)
            tidy(panel).set(xlim=(-3, 103), ylim=(len(found) - 0.4, -0.6), yticks=range(len(found)), yticklabels=list(found))
            panel.set_title(f"{name}, {norm}", fontsize=9, loc="left")
            panel.legend(fontsize=8, ncols=len(radii) + 1, loc="lower right", bbox_to_anchor=(1.03, 0.98), frameon=False, handletextpad=0.1)
    for panel in panels[-1]:
        panel.set_xlabel("accuracy, %", fontsize=9)
    return figure
