"""Figures show the data that they get."""

import math

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.text import Text
from torch import nn

from vat import plots
from vat.plots.style import MARKERS, WRONG


class Slope(nn.Module):
    """Logits (0, slope · first coordinate of the plane): the boundary is the vertical line z₀ = 0."""

    def __init__(self, slope, embedding):
        super().__init__()
        self.slope, self.embedding = slope, embedding

    def forward(self, x):
        z = self.slope * (x @ self.embedding.T)[:, 0]
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.fixture
def figure():
    embedding = torch.linalg.qr(torch.randn(5, 2, generator=torch.Generator().manual_seed(0))).Q.T
    networks = {"flat": Slope(0.5, embedding), "steep": Slope(5.0, embedding)}
    z, y = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [-0.5, 1.0]]), torch.tensor([0, 1, 0])
    return plots.plane_figure(networks, z, y, embedding, eps=0.3, title="a plane", resolution=21)


def test_a_constant_network_is_drawn():
    embedding = torch.eye(2)
    z, y = torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.tensor([0, 1])
    figure = plots.plane_figure({"collapsed": Slope(0.0, embedding)}, z, y, embedding, eps=0.3, title="a plane", resolution=5)
    assert len(panels(figure)) == 2


def panels(figure):
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def test_a_figure_is_drawn_without_touching_pyplot(figure):
    assert not plt.get_fignums()
    assert len(panels(figure)) == 4
    assert [axes.get_title() for axes in panels(figure)[:2]] == ["flat", "steep"]


def test_the_boundary_is_where_the_logits_are_equal(figure):
    for axes in panels(figure):
        boundary = axes.collections[1].get_paths()[0].vertices
        assert abs(boundary[:, 0]).max() < 1e-4


def test_every_training_point_is_shown_in_every_panel(figure):
    for axes in panels(figure):
        shown = torch.cat([torch.tensor(axes.collections[i].get_offsets().data) for i in (-2, -1)])
        assert sorted(map(tuple, shown.tolist())) == [(-1.0, 0.0), (-0.5, 1.0), (1.0, 0.5)]


def test_columns_share_the_scale_of_lds(figure):
    flat, steep = panels(figure)[2:]
    assert flat.collections[0].norm.vmax == steep.collections[0].norm.vmax


# ------------------------------------------------------------------------------------------------------ of classifiers


def bars(axes):
    return [(patch.get_x() + patch.get_width() / 2, patch.get_height()) for patch in axes.patches]


def texts(axes):
    return {(text.get_position()): text.get_text() for text in axes.texts}


COUNTS = torch.tensor([[8, 2, 0], [0, 10, 0], [1, 4, 5]])
NAMES = ["cat", "dog", "emu"]


def test_confusion_shows_the_shares_of_each_class_and_colours_mistakes_alone():
    figure = plots.confusion_figure(COUNTS, NAMES)
    axes = panels(figure)[0]
    assert {place: text for place, text in texts(axes).items() if text} == {
        (0, 0): "80", (1, 0): "20", (1, 1): "100", (0, 2): "10", (1, 2): "40", (2, 2): "50",
    }  # fmt: skip
    shown = torch.tensor(axes.images[0].get_array())
    assert torch.equal(shown.diagonal(), torch.zeros(3))
    assert shown[2, 1] == 40
    assert [tick.get_text() for tick in axes.get_yticklabels()] == NAMES


def test_a_class_without_examples_is_no_error_in_a_figure():
    counts = torch.tensor([[5, 1], [0, 0]])
    plots.confusion_figure(counts, ["a", "b"]).canvas.draw()
    axes = panels(plots.class_error_figure(counts, ["a", "b"]))[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a"]


def test_the_error_of_each_class_has_wilsons_interval():
    from statistics import NormalDist

    axes = panels(plots.class_error_figure(COUNTS, NAMES))[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["emu", "cat", "dog"]
    assert [patch.get_width() for patch in axes.patches] == pytest.approx([50, 20, 0])
    z = NormalDist().inv_cdf(0.975)
    intervals = [sorted(line.get_xdata()) for line in axes.lines[:3]]
    for (low, high), p in zip(intervals, (0.5, 0.2, 0.0), strict=True):
        for bound in (low / 100, high / 100):  # by definition the score test just accepts p
            assert (p - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / 10, rel=1e-3, abs=1e-9)


def test_reliability_is_accuracy_over_confidence_with_torchmetrics_calibration_error():
    from torchmetrics.functional.classification import multiclass_calibration_error

    generator = torch.Generator().manual_seed(0)
    chances = (2 * torch.randn(500, 4, generator=generator)).softmax(1)
    y = torch.randint(4, (500,), generator=generator)
    above, below = plots.reliability_figure(chances, y).axes
    expected = float(multiclass_calibration_error(chances, y, num_classes=4, n_bins=15))
    assert above.get_title() == f"Reliability: calibration error {expected:.3f}"
    confidence, said = chances.max(1)
    for middle, height in bars(above):
        inside = (confidence > middle - 1 / 30) & (confidence <= middle + 1 / 30)
        assert height == pytest.approx(float((said == y)[inside].double().mean()), abs=1e-6)
    assert sum(height for _, height in bars(below)) == pytest.approx(100)


def test_kl_is_counted_over_all_examples_and_may_be_zero():
    kl, chance = torch.tensor([1e-3, 1e-2, 1e-1, 1.0]), torch.tensor([0.0, 1e-5, 1e-4, 1e-4])
    axes = panels(plots.kl_figure(kl, chance, eps=2))[0]
    *_, heights = [patch.get_xy() for patch in axes.patches][-1:]
    assert max(y for _, y in heights) >= 1
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["random r: median 1e-05", "r that is found: median 0.01"]


@pytest.mark.parametrize("channels", [1, 3])
def test_perturbations_go_from_the_least_to_the_most_moved(channels):
    x = torch.rand(20, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    kl = torch.linspace(1, 0, 20)
    before, after = torch.eye(3)[[0] * 20], torch.eye(3)[[1] * 20]
    figure = plots.perturbation_figure(x, 0.1 * x, before, after, kl, torch.zeros(20).long(), class_names=NAMES, eps=1)
    top, middle, bottom = (panels(figure)[i * 8 : i * 8 + 8] for i in range(3))
    moved = [float(axes.get_title().removeprefix("KL ")) for axes in middle]
    assert moved == sorted(moved)
    assert (moved[0], moved[-1]) == (0, 1)
    assert {axes.get_title() for axes in top} == {"cat\n100 %"}
    assert {axes.get_title() for axes in bottom} == {"dog\n100 %"}
    assert {axes.title.get_color() for axes in bottom} == {WRONG}
    assert {axes.title.get_color() for axes in top} == {"black"}
    shown = torch.as_tensor(top[-1].images[0].get_array()).view(4, 4, -1).movedim(2, 0)
    assert torch.corrcoef(torch.stack([shown.flatten(), x[0].flatten()]))[0, 1] > 0.9999


def test_features_are_named_by_how_much_they_are_moved():
    r = torch.tensor([[0.1, -3.0, 1.0], [0.1, 1.0, -1.0]])
    axes = panels(plots.feature_figure(r, names=["age", "height", "weight"], eps=1, most=2))[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["height", "weight"]
    assert [patch.get_width() for patch in axes.patches] == pytest.approx([2.0, 1.0])


def test_the_course_of_a_run_shows_what_there_is():
    history = [
        {"step": 10, "val/error": 0.3, "val/cross_entropy": 1.0, "train/vat": 0.2, "train/vat/lds": 0.2, "train/vat/kl_random": 0.01},
        {"step": 20, "val/error": 0.2, "val/cross_entropy": 0.9, "train/vat": 0.1, "train/vat/lds": 0.1, "train/vat/kl_random": math.nan},
    ]
    axes = {found.get_ylabel(): found for found in plots.curves_figure(history).axes}
    assert list(axes) == ["error, %", "cross entropy", "term of the loss", "KL, nats"]
    assert list(axes["error, %"].lines[0].get_ydata()) == [30.0, 20.0]
    assert [list(line.get_xdata()) for line in axes["KL, nats"].lines] == [[10, 20], [10]]
    assert [found.get_ylabel() for found in plots.curves_figure([{"step": 1, "val/error": 0.5}]).axes] == ["error, %"]


# ----------------------------------------------------------------------------------------------------------- of sweeps


def lines(axes):
    return {
        line.get_label(): [tuple(map(float, point)) for point in line.get_xydata()]
        for line in axes.get_lines()
        if line.get_marker() in MARKERS
    }


def test_a_sweep_over_one_number_is_a_line_of_means_with_deviations():
    settings = [{"vat.eps": eps} for eps in ("4", "0.5", "1")]
    errors = [([6.0, 8.0], [7.0, 7.0]), ([3.0, 5.0], [2.0, 2.0]), ([9.0], [1.0])]
    validation, test = plots.sweep_figure(settings, errors).axes
    (points,) = lines(validation).values()
    assert points == [(0.5, 4.0), (1.0, 9.0), (4.0, 7.0)]
    assert (validation.get_title(), test.get_title(), validation.get_xscale()) == ("validation", "test", "log")
    found = [collection for container in validation.containers for collection in container.lines[2]]
    spans = [tuple(segment[:, 1]) for collection in found for segment in collection.get_segments()]
    assert [high - low for low, high in spans] == pytest.approx([2 * 2**0.5] * 2)


def test_a_sweep_over_two_numbers_has_panels_of_each_with_a_line_for_each_value_of_the_other():
    settings = [{"vat.eps": e, "vat.weight": w} for e in ("1", "2") for w in ("0.3", "10", "3")]
    figure = plots.sweep_figure(settings, [([float(i)], []) for i in range(6)])
    by_eps, by_weight = figure.axes
    assert list(lines(by_eps)) == ["weight = 0.3", "weight = 3", "weight = 10"]
    assert lines(by_weight)["eps = 2"] == [(0.3, 3.0), (3.0, 5.0), (10.0, 4.0)]


def test_separate_grids_share_the_axis_of_a_name_and_one_without_numbers_is_a_level():
    settings = [{"regularizer": "none"}, *({"regularizer": r, f"{r}.eps": e} for r in ("vat", "adversarial") for e in ("1", "2"))]
    (axes,) = plots.sweep_figure(settings, [([float(i)], []) for i in range(5)]).axes
    assert lines(axes) == {"adversarial": [(1.0, 3.0), (2.0, 4.0)], "vat": [(1.0, 1.0), (2.0, 2.0)]}
    (level,) = [line for line in axes.get_lines() if line.get_label() == "none"]
    assert set(level.get_ydata()) == {0.0}


def test_a_sweep_without_numbers_is_a_list():
    settings = [{"model": m, "regularizer": "vat"} for m in ("mlp", "cnn")]
    (axes,) = plots.sweep_figure(settings, [([2.0, 4.0], []), ([5.0], [])]).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["mlp, vat", "cnn, vat"]


def test_no_figure_of_the_module_touches_pyplot():
    assert not plt.get_fignums()


ROBUST = {"l2": {"eps": [0.5, 1.0], "accuracy": {"fgm": [0.8, 0.4], "worst": [0.7, 0.2]}}}


def test_the_curves_start_at_the_clean_accuracy():
    (panel,) = plots.robustness_figure(ROBUST, 0.9, unit="pixels").axes
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in panel.lines}
    assert drawn["worst case"] == ([0, 0.5, 1.0], [90.0, 70.0, 20.0])
    assert drawn["fgm"][1] == [90.0, 80.0, 40.0]


def test_adversarial_examples_are_shown_with_what_was_added():
    x = torch.full((2, 1, 4, 4), 0.5)
    change = torch.zeros_like(x)
    change[0, 0, 0, 0], change[1, 0, 3, 3] = 0.2, -0.1
    figure = plots.adversarial_figure(x, x + change, [("3", "5"), ("cat", "dog")], bounds=(0.0, 1.0), title="t")
    panels = [axes.images[0].get_array() for axes in figure.axes]
    assert panels[0].tolist() == x[0, 0].tolist()
    assert panels[2][0, 0] == pytest.approx(1.0)  # the largest change is white
    assert panels[3][3, 3] == pytest.approx(0.25)
    assert panels[5][3, 3] == pytest.approx(0.4)
    assert [axes.get_title() for axes in figure.axes] == ["3", "cat", "", "", "5", "dog"]


def test_a_study_shows_every_seed_of_every_method():
    def seed(clean, worst):
        return {"clean": {"accuracy": clean}, "robust": {"l2": {"eps": [1.0], "accuracy": {"worst": [worst]}}}}

    found = {"VAT": [seed(0.9, 0.4), seed(0.8, 0.6)], "none": [seed(1.0, 0.0)] * 2}
    (above, below) = plots.study_figure({"digits": found, "mnist_100": {"none": found["none"]}}).axes
    shown = {(line.get_label(), place): list(line.get_xdata()) for line in above.lines for place in set(line.get_ydata())}
    assert shown["clean", 0] == pytest.approx([90.0, 80.0])
    assert shown["ε = 1", 0] == pytest.approx([40.0, 60.0])
    assert [label.get_text() for label in above.get_yticklabels()] == ["VAT", "none"]
    assert (above.get_title(loc="left"), below.get_title(loc="left")) == ("digits, l2", "mnist_100, l2")
    assert [text.get_text() for text in below.get_legend().get_texts()] == ["clean", "ε = 1"]


@pytest.mark.parametrize("of", ["confusion", "class error", "features", "perturbations", "adversarial"])
def test_names_with_dollar_signs_are_drawn_unchanged_and_long_ones_cut(of, tmp_path):
    names, counts = [r"$\frac{$", "from $5 to $6", 300 * "long"], torch.tensor([[3, 1, 0], [0, 2, 1], [1, 0, 4]])
    x, chances, y = torch.rand(3, 1, 4, 4), torch.eye(3), torch.arange(3)
    figure = {
        "confusion": lambda: plots.confusion_figure(counts, names),
        "class error": lambda: plots.class_error_figure(counts, names),
        "features": lambda: plots.feature_figure(torch.rand(5, 3), names=names, eps=1.0),
        "perturbations": lambda: plots.perturbation_figure(x, x, chances, chances, torch.rand(3), y, class_names=names, eps=1.0),
        "adversarial": lambda: plots.adversarial_figure(x, x, [(name, name) for name in names], bounds=None, title=""),
    }[of]()

    figure.savefig(tmp_path / "figure.png")

    said = [text.get_text() for text in figure.findobj(Text)]
    assert all(any(name[:20].replace("$", r"\$") in text for text in said) for name in names)
    assert max(map(len, said)) < 120
