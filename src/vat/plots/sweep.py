"""Errors of a sweep."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vat.plots.style import COLOURS, MARKERS, new_figure, tidy


def sweep_figure(settings: Sequence[Mapping[str, str]], errors: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Error against the swept options: mean over seeds, bars of one standard deviation, validation next to test.

    Each swept number has a row of panels. Numbers with the same last name (`vat.eps`, `adversarial.eps`) share a row. A setting without
    such a number is a dashed line. If no swept option is a number, each setting has a line of one panel.

    Args:
        settings: Values by key, one mapping for each setting.
        errors: Validation and test errors of each setting's seeds, in %. The second is empty if there was no test.
    """
    numbers = {key for key in {k for s in settings for k in s} if _is_number(s[key] for s in settings if key in s)}
    axis = {key: key.rsplit(".", 1)[-1] for key in sorted(numbers)}
    if any(len({axis[k] for k in s if k in axis}) < len([k for k in s if k in axis]) for s in settings):
        axis = {key: key for key in axis}
    rows = [name for name in sorted(set(axis.values())) if len({s[k] for s in settings for k in s if axis.get(k) == name}) > 1]
    stages = ["validation", "test"] if any(test for _, test in errors) else ["validation"]
    width = 4.3 * len(stages) + 1.7
    if not rows:
        figure = new_figure(width, 0.34 * len(settings) + 1.3)
        row = figure.subplots(1, len(stages), sharex=True, sharey=True, squeeze=False)[0]
        for number, panel in enumerate(row):
            tidy(panel)
            for place, of_setting in enumerate(errors):
                _point(panel, place, of_setting[number], COLOURS[0], "o", horizontal=True)
            panel.set_yticks(range(len(settings)), [_named(s) or "all" for s in settings])
            panel.set(xlabel="error, %", title=stages[number])
        row[0].invert_yaxis()
        return figure

    figure = new_figure(width, 3.1 * len(rows) + 0.3)
    grid = figure.subplots(len(rows), len(stages), sharey="row", squeeze=False)
    for row, name in zip(grid, rows, strict=True):
        lines: dict[str, list[tuple[float, int]]] = {}
        constant = []
        for i, setting in enumerate(settings):
            key = next((k for k in setting if axis.get(k) == name), None)
            if key is not None:
                lines.setdefault(_named({k: v for k, v in setting.items() if k != key}), []).append((float(setting[key]), i))
            elif not any(k in axis for k in setting):
                constant.append(i)
        ticks = sorted({value for points in lines.values() for value, _ in points})
        labels = sorted(lines, key=_natural)
        for number, (panel, stage) in enumerate(zip(row, stages, strict=True)):
            tidy(panel)
            for label, colour, marker in zip(labels, cycle(COLOURS), cycle(MARKERS)):
                points = [(value, errors[i][number]) for value, i in sorted(lines[label]) if errors[i][number]]
                for value, found in points:
                    _point(panel, value, found, colour, marker)
                panel.plot(
                    [value for value, _ in points], [_mean(found) for _, found in points], color=colour, marker=marker, label=label or None
                )
            for i, style in zip(constant, cycle(("--", ":", "-."))):
                if errors[i][number]:
                    panel.axhline(_mean(errors[i][number]), color="#555555", linestyle=style, linewidth=1.2, label=_named(settings[i]))
            if ticks[0] > 0 and ticks[-1] >= 4 * ticks[0]:
                panel.set_xscale("log")
            panel.set_xticks(ticks, [f"{value:g}" for value in ticks], fontsize=8.5)
            panel.set_xticks([], minor=True)
            panel.set(xlabel=next(iter(axis)) if len(axis) == 1 else name, title=stage)
        row[0].set_ylabel("error, %")
        if any(labels) or constant:
            row[-1].legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _point(panel: Axes, place: float, found: Sequence[float], colour: str, marker: str, *, horizontal: bool = False) -> None:
    """Mean and standard deviation of the seeds."""
    if not found:
        return
    spread = (sum((v - _mean(found)) ** 2 for v in found) / (len(found) - 1)) ** 0.5 if len(found) > 1 else 0.0
    at = (_mean(found), place) if horizontal else (place, _mean(found))
    error = {"xerr" if horizontal else "yerr": spread or None}
    panel.errorbar(*at, **error, color=colour, marker=marker if horizontal else "", capsize=2.5, linewidth=1.1, alpha=0.7)  # pyright: ignore[reportArgumentType]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _is_number(values: Iterable[str]) -> bool:
    try:
        return all(math.isfinite(float(value)) for value in values)
    except ValueError:
        return False


def _named(setting: Mapping[str, str]) -> str:
    """A setting as text. A choice from a config group is shown without its key."""
    return ", ".join(value if "." not in key else f"{key.rsplit('.', 1)[-1]} = {value}" for key, value in setting.items())


def _natural(label: str) -> list[tuple[int, float, str]]:
    """Sort key that orders numbers in a label by value: 0.3, 1, 10."""
    return [(0, float(part), "") if _is_number([part]) else (1, 0.0, part) for part in label.split()]
