"""Figures show the data they are given."""

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from vat import plots


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


def panels(figure):
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def test_a_figure_is_drawn_without_touching_pyplot(figure):
    assert not plt.get_fignums()
    assert len(panels(figure)) == 4
    assert [axes.get_title() for axes in panels(figure)[:2]] == ["flat", "steep"]


def test_the_boundary_lies_where_the_logits_are_equal(figure):
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


def test_a_study_shows_mean_and_spread_over_seeds():
    def seed(clean, worst):
        return {"clean": {"accuracy": clean}, "robust": {"l2": {"eps": [1.0], "accuracy": {"worst": [worst]}}}}

    (panel,) = plots.study_figure({"VAT": [seed(0.9, 0.4), seed(0.8, 0.6)], "none": [seed(1.0, 0.0)] * 2}, title="t").axes
    assert [line.get_label() for line in panel.lines] == ["VAT", "none"]
    assert list(panel.lines[0].get_ydata()) == pytest.approx([85.0, 50.0])
    band = panel.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(85 + 50**0.5, rel=1e-4)
