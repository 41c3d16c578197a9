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
