"""Figures: data in, `Figure` out, nothing read or written."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from vat import local_distributional_smoothness
from vat.functional import probabilities
from vat.step import Key

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000")  # Okabe and Ito's, for all kinds of sight
WRONG = "#d55e00"
MOST_LETTERS = 40
MARKERS = ("o", "^", "s", "D", "v")
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
    x = grid.to(embedding.device) @ embedding
    chances, smoothness = {}, {}
    for name, network in networks.items():
        network.eval()
        with torch.no_grad():
            chances[name] = probabilities(network(x))[:, 1].view(resolution, resolution).T.cpu()
        lds = local_distributional_smoothness(network, x, eps=eps, key=Key(0))
        smoothness[name] = lds.view(resolution, resolution).T.cpu()
    worst = max(float(lds.max()) for lds in smoothness.values()) or 1.0  # a constant network's is 0, and levels must differ

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


def perturbation_figure(
    x: Tensor, r: Tensor, before: Tensor, after: Tensor, kl: Tensor, y: Tensor, *, class_names: Sequence[str], eps: float
) -> Figure:
    """Up to eight images with their r, perturbed, and what the network says of both: from the least to the most moved.

    Args:
        x: images (N, C, H, W) of one or three channels.
        r: perturbations (N, C, H, W).
        before: probabilities (N, classes) at x.
        after: probabilities (N, classes) at x + r.
        kl: divergence of the two (N,).
        y: labels (N,).
        class_names: of the classes.
        eps: length of r, for the title.
    """
    order = kl.argsort()
    chosen = order[torch.linspace(0, len(order) - 1, min(8, len(order))).round().long()]
    figure, names = _figure(1.3 * len(chosen) + 0.9, 5.6), _literal(class_names)
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


def feature_figure(r: Tensor, *, names: Sequence[str], eps: float, most: int = 20) -> Figure:
    """The features that r moves: mean |r| over the examples, the largest above.

    Args:
        r: perturbations (N, features).
        names: of the features.
        eps: length of r, for the title.
        most: features that are shown.
    """
    size, place = r.abs().mean(0).topk(min(most, r.shape[1]))
    figure = _figure(6, 0.26 * len(size) + 1.3)
    axes = _tidy(figure.subplots())
    literal = _literal(names)
    axes.barh(range(len(size)), size.tolist(), color=COLOURS[0])
    axes.set_yticks(range(len(size)), [literal[i] for i in place.tolist()])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(y=0.02)
    axes.set(xlabel="mean |r|", title=f"Features that the perturbation moves, ‖r‖ = {eps:g}")
    return figure


def confusion_figure(counts: Tensor, class_names: Sequence[str]) -> Figure:
    """Confusion matrix: the share of each class (rows) that was taken for each (columns); colour is for mistakes alone.

    Args:
        counts: int64 (classes, classes).
        class_names: of the classes.
    """
    shares = 100 * counts / counts.sum(1, keepdim=True).clamp_min(1)
    mistakes = shares.clone().fill_diagonal_(0)
    size = max(4.2, 0.5 * len(counts) + 1.8)
    figure = _figure(size + 0.9, size)
    axes = figure.subplots()
    drawn = axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=max(1.0, float(mistakes.max())))
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
        long, names = max(map(len, class_names)) > 3, _literal(class_names)
        axes.set_xticks(
            ticks, names, rotation=45 if long else 0, ha="right" if long else "center", rotation_mode="anchor" if long else None
        )
        axes.set_yticks(ticks, names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="taken for", ylabel="class", title="Confusion, % of each class")
    figure.colorbar(drawn, ax=axes, label="mistakes, %", shrink=0.8)
    return figure


def reliability_figure(chances: Tensor, y: Tensor) -> Figure:
    """Is the network as often right as it claims to be? Accuracy against confidence, and how often each confidence occurs.

    Args:
        chances: probabilities (N, classes).
        y: labels (N,).
    """
    bins = 15  # of equal width, as the calibration error has them
    confidence, said = chances.max(1)
    right = (said == y).to(confidence.dtype)
    edges = torch.linspace(0, 1, bins + 1)
    place = torch.bucketize(confidence, edges[1:-1].to(confidence))
    number = torch.bincount(place, minlength=bins)
    claimed, reached = (torch.bincount(place, weights=v, minlength=bins) / number.clamp_min(1) for v in (confidence, right))
    error = float((number / len(y) * (claimed - reached).abs()).sum())
    occurs = (number > 0).tolist()
    centres = ((edges[1:] + edges[:-1]) / 2).tolist()

    figure = _figure(5, 5.6)
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    for panel in (above, below):
        _tidy(panel)
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
        Patch(color=WRONG, label="claims too much by"),
        Patch(color="black", label="claims too little by"),
    ]
    above.legend(handles=legend, framealpha=0.85, edgecolor="none", loc="upper left", fontsize=8.5)  # bars may stand behind it
    below.bar(centres, (100 * number / len(y)).tolist(), width=0.92 / bins, color="#999999")
    below.set(xlabel="confidence", ylabel="examples, %", xlim=(0, 1))
    return figure


def kl_figure(kl: Tensor, at_random: Tensor, *, eps: float) -> Figure:
    """How much the prediction changes, over the examples: at the r that is found, and at a random one of the same length.

    Args:
        kl: divergence at the r that is found (N,), in nats.
        at_random: at a random r (N,).
        eps: length of r.
    """
    smallest = 1e-8
    kl, at_random = (v.double().clamp_min(smallest).log10() for v in (kl, at_random))
    low, high = float(min(kl.min(), at_random.min())), float(max(kl.max(), at_random.max()))
    edges = torch.linspace(math.floor(low), math.ceil(high + 1e-9), 41).tolist()
    figure = _figure(6.2, 3.6)
    axes = _tidy(figure.subplots())
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


def class_error_figure(counts: Tensor, class_names: Sequence[str]) -> Figure:
    """Error of each class with its 95 % interval (Wilson's), the worst above.

    Args:
        counts: confusion matrix, int64 (classes, classes).
        class_names: of the classes.
    """
    total = counts.sum(1).double()
    seen = torch.nonzero(total)[:, 0]
    literal = _literal(class_names)
    n, names = total[seen], [literal[i] for i in seen.tolist()]
    share = 1 - counts.diagonal().double()[seen] / n
    z = 1.96
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)).sqrt()
    order = share.argsort(descending=True).tolist()
    overall = 100 * float(1 - counts.diagonal().sum() / counts.sum())
    figure = _figure(6, max(2.4, 0.3 * len(order) + 1.3))
    axes = _tidy(figure.subplots())
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


def curves_figure(history: Sequence[Mapping[str, float]]) -> Figure:
    """The run from its start: validation error, the terms of the loss, the regularizers' diagnostics; as far as they are there.

    Args:
        history: records by the names they are logged under, each with its `step`.
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
    figure = _figure(6.4, 1.9 * len(panels) + 0.9)
    column = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (label, lines) in zip(column, panels.items(), strict=True):
        _tidy(axes)
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


def sweep_figure(settings: Sequence[Mapping[str, str]], errors: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Error against what was swept: mean over seeds, bars of one standard deviation, validation beside test.

    Swept numbers have a row of panels each, those of one last name (`vat.eps`, `adversarial.eps`) one together; a setting without any is
    a dashed line. Where nothing is a number, the settings stand below one another.

    Args:
        settings: values by key, one mapping a setting.
        errors: validation and test errors of each setting's seeds, in %; the second empty where there was no test.
    """
    numbers = {key for key in {k for s in settings for k in s} if _is_number(s[key] for s in settings if key in s)}
    axis = {key: key.rsplit(".", 1)[-1] for key in sorted(numbers)}
    if any(len({axis[k] for k in s if k in axis}) < len([k for k in s if k in axis]) for s in settings):
        axis = {key: key for key in axis}
    rows = [name for name in sorted(set(axis.values())) if len({s[k] for s in settings for k in s if axis.get(k) == name}) > 1]
    stages = ["validation", "test"] if any(test for _, test in errors) else ["validation"]
    width = 4.3 * len(stages) + 1.7
    if not rows:
        figure = _figure(width, 0.34 * len(settings) + 1.3)
        row = figure.subplots(1, len(stages), sharex=True, sharey=True, squeeze=False)[0]
        for number, panel in enumerate(row):
            _tidy(panel)
            for place, of_setting in enumerate(errors):
                _point(panel, place, of_setting[number], COLOURS[0], "o", horizontal=True)
            panel.set_yticks(range(len(settings)), [_named(s) or "all" for s in settings])
            panel.set(xlabel="error, %", title=stages[number])
        row[0].invert_yaxis()
        return figure

    figure = _figure(width, 3.1 * len(rows) + 0.3)
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
            _tidy(panel)
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
    """A setting in words: what is chosen from a group needs no key."""
    return ", ".join(value if "." not in key else f"{key.rsplit('.', 1)[-1]} = {value}" for key, value in setting.items())


def _natural(label: str) -> list[tuple[int, float, str]]:
    """Sorts 0.3, 1, 10 as numbers."""
    return [(0, float(part), "") if _is_number([part]) else (1, 0.0, part) for part in label.split()]


def _perturbed(figure: Figure, x: Tensor, r: Tensor, bounds: tuple[float, float] | None) -> tuple[Any, float]:
    """Panels of images (N, C, H, W), of r, and of their sum, a column each; and the largest |r|, which has the full colour.

    Black and white are the bounds, or the least and greatest value of the images.
    """
    low, high = bounds or (float(x.amin()), float(x.amax()))
    reach = float(r.abs().amax()) or 1.0
    panels = figure.subplots(3, len(x), squeeze=False)
    for row, pictures in enumerate((x, r, x + r)):
        for panel, picture in zip(panels[row], pictures, strict=True):
            if row == 1:  # its sign matters: white is 0
                panel.imshow(_picture((picture / reach + 1) / 2), cmap="PuOr_r", vmin=0, vmax=1, interpolation="nearest")
            else:
                panel.imshow(_picture((picture - low) / ((high - low) or 1)), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
    return panels, reach


def _picture(image: Tensor) -> Tensor:
    """(C, H, W) as matplotlib takes it: (H, W) of one channel, else (H, W, 3)."""
    image = image.float().clamp(0, 1)
    return image[0] if len(image) == 1 else image[:3].movedim(0, -1)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _literal(names: Iterable[str]) -> list[str]:
    """Users' words, short enough to leave room for a figure; matplotlib would take two dollar signs for a formula."""
    half = MOST_LETTERS // 2
    short = (name if len(name) <= MOST_LETTERS else f"{name[:half]}…{name[1 - half :]}" for name in names)
    return [name.replace("$", r"\$") for name in short]


def _tidy(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5)
    return axes


def robustness_figure(robust: Mapping[str, Mapping[str, Any]], clean: float, *, unit: str) -> Figure:
    """Accuracy against ε, a panel for each norm and a line for each attack.

    Args:
        robust: for each norm `eps`, the radii, and `accuracy`, for each attack those at the radii; as
            `vat.evaluation.robustness.evaluate` returns it.
        clean: accuracy at ε = 0.
        unit: of ε.
    """
    figure = _figure(5.2 * max(1, len(robust)), 4)
    panels = figure.subplots(1, max(1, len(robust)), squeeze=False, sharey=True)[0]
    for panel, (norm, found) in zip(panels, robust.items(), strict=False):
        for (name, accuracies), colour, marker in zip(found["accuracy"].items(), cycle(COLOURS[:-1]), cycle(MARKERS)):
            worst = name == "worst"
            style = {"color": "black", "linewidth": 2.2, "zorder": 3} if worst else {"color": colour, "marker": marker, "markersize": 4}
            panel.plot([0, *found["eps"]], [100 * a for a in (clean, *accuracies)], label="worst case" if worst else name, **style)
        _tidy(panel).set(title=norm, xlabel="ε", ylim=(0, 102))
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
        bounds: black and white; the images' least and greatest value if None.
        title: of the figure.
    """
    figure = _figure(1.3 * len(x) + 0.4, 4.6)
    panels, largest = _perturbed(figure, x, adversarial - x, bounds)
    for column, (true, taken) in enumerate(map(_literal, names)):
        panels[0, column].set_title(true, fontsize=9)
        panels[2, column].set_title(taken, fontsize=9)
    sign = "orange +, " if x.shape[1] == 1 else ""
    figure.suptitle(f"{title}: image and class, perturbation ({sign}full scale ±{largest:.2g}), result and prediction", fontsize=9)
    return figure


def study_figure(tables: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> Figure:
    """Clean and worst-case accuracy: a row of panels for each table, a panel for each norm, a line for each method, a point for each seed.

    Args:
        tables: for each table and method what `vat.evaluation.robustness.evaluate` returned for each seed;
            radii are those of the table's first.
    """
    first = {name: next(iter(found.values()))[0] for name, found in tables.items()}
    norms = list(next(iter(first.values()))["robust"])
    heights = [1.0 + 0.24 * len(found) for found in tables.values()]
    figure = _figure(1.2 + 3.6 * len(norms), sum(heights) + 0.3)
    panels = figure.subplots(len(tables), len(norms), squeeze=False, sharex=True, sharey="row", height_ratios=heights)
    for row, (name, found) in zip(panels, tables.items(), strict=True):
        for panel, norm in zip(row, norms, strict=True):
            radii = first[name]["robust"][norm]["eps"]
            for at, (colour, marker) in zip(range(len(radii) + 1), cycle(zip(("#8c8c8c", *COLOURS), ("|", *MARKERS), strict=False))):
                for place, seeds in enumerate(found.values()):
                    values = [(one["clean"]["accuracy"], *one["robust"][norm]["accuracy"]["worst"])[at] * 100 for one in seeds]
                    label = None if place else "clean" if at == 0 else f"ε = {radii[at - 1]:g}"
                    panel.plot(values, [place] * len(values), linestyle="none", marker=marker, markersize=5, color=colour, label=label)
            _tidy(panel).set(xlim=(-3, 103), ylim=(len(found) - 0.4, -0.6), yticks=range(len(found)), yticklabels=list(found))
            panel.set_title(f"{name}, {norm}", fontsize=9, loc="left")
            panel.legend(fontsize=8, ncols=len(radii) + 1, loc="lower right", bbox_to_anchor=(1.03, 0.98), frameon=False, handletextpad=0.1)
    for panel in panels[-1]:
        panel.set_xlabel("accuracy, %", fontsize=9)
    return figure
