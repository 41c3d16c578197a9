"""Colours, markers and helpers of all figures."""

from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000")  # Okabe and Ito's: safe for colour-blind readers

WRONG = "#d55e00"

MOST_LETTERS = 40

MARKERS = ("o", "^", "s", "D", "v")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure. Width and height are in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def shown_names(names: Iterable[str]) -> list[str]:
    """Shorten users' names so that they fit into a figure. Dollar signs are escaped: matplotlib reads text between two as a formula."""
    half = MOST_LETTERS // 2
    short = (name if len(name) <= MOST_LETTERS else f"{name[:half]}…{name[1 - half :]}" for name in names)
    return [name.replace("$", r"\$") for name in short]


def tidy(axes: Axes) -> Axes:
    """Add a faint grid to the axes, and hide the upper and right spine."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5)
    return axes
