"""Distances agree with scikit-learn. The default radius does not depend on the number of examples."""

import math

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from vat.data.neighbours import GROUP, SHARE, distances, neighbours


def blobs(number, classes=3, dimensions=10, apart=4.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(number) % classes
    centres = apart * torch.randn(classes, dimensions, generator=generator)
    return centres[y] + torch.randn(number, dimensions, generator=generator), y


@pytest.mark.parametrize("far", [0.0, 1e4])
def test_nearest_distances_are_scikit_learns(far):
    x, _ = blobs(100)
    x = x.double() + far
    expected = NearestNeighbors(n_neighbors=2).fit(x.numpy()).kneighbors(x.numpy())[0][:, 1]
    torch.testing.assert_close(distances(x).amin(1), torch.from_numpy(expected), rtol=1e-6, atol=0)


def test_copies_are_no_neighbours():
    x, y = blobs(60)
    rows = torch.arange(60)
    once = neighbours(x, y, labeled=rows, pool=rows)
    doubled = neighbours(x.repeat(2, 1), y.repeat(2), labeled=rows, pool=torch.arange(120))
    assert doubled.nearest == pytest.approx(once.nearest, rel=0.1)  # in other groups
    one_group = torch.arange(GROUP // 2)
    few = neighbours(x, y, labeled=rows, pool=one_group)
    assert neighbours(x.repeat(2, 1), y.repeat(2), labeled=rows, pool=torch.cat([one_group, one_group + 60])).nearest == few.nearest


def test_the_radius_does_not_shrink_as_data_grow():
    few, many = (neighbours(*blobs(n), labeled=torch.arange(30), pool=torch.arange(n)) for n in (10 * GROUP, 1000 * GROUP))
    assert many.nearest == pytest.approx(few.nearest, rel=0.1)
    assert few.default_eps == pytest.approx(SHARE * few.nearest, rel=5e-3)


def test_the_nearest_of_a_group_is_scikit_learns():
    x, y = blobs(GROUP)
    rows = torch.arange(GROUP)
    expected = NearestNeighbors(n_neighbors=2).fit(x.double().numpy()).kneighbors(x.double().numpy())[0][:, 1]
    assert neighbours(x, y, labeled=rows, pool=rows).nearest == pytest.approx(sorted(expected)[(GROUP - 1) // 2], rel=1e-6)


def test_a_nearest_neighbour_classifier_is_scored_as_scikit_learns():
    x, y = blobs(80, apart=1.0)
    rows = torch.arange(80)
    found = neighbours(x, y, labeled=rows, pool=rows)
    places = NearestNeighbors(n_neighbors=2).fit(x.numpy()).kneighbors(x.numpy())[1][:, 1]
    assert found.accuracy == pytest.approx((y[places] == y).double().mean().item())
    assert found.chance == pytest.approx(sum((y == c).double().mean().item() ** 2 for c in range(3)))


def test_distances_to_other_classes_are_told_apart():
    x, y = blobs(300, apart=20.0)
    rows = torch.arange(300)
    apart = neighbours(x, y, labeled=rows[:60], pool=rows)
    assert apart.other_class > 3 * apart.labeled
    assert not apart.classes_touch
    mixed = neighbours(x, y[torch.randperm(300, generator=torch.Generator().manual_seed(0))], labeled=rows[:60], pool=rows)
    assert mixed.classes_touch
    assert not neighbours(x, y.new_zeros(300), labeled=rows[:60], pool=rows).classes_touch


def test_bytes_count_as_inputs():
    x = torch.randint(256, (50, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows, y = torch.arange(50), torch.arange(50) % 2
    as_bytes, as_floats = (neighbours(of, y, labeled=rows, pool=rows) for of in (x, x.float() / 255))
    assert as_bytes.nearest == pytest.approx(as_floats.nearest, rel=1e-6)


def test_equal_inputs_have_no_radius():
    found = neighbours(torch.ones(30, 4), torch.arange(30) % 2, labeled=torch.arange(30), pool=torch.arange(30))
    assert math.isnan(found.nearest)
    assert not found.classes_touch
    with pytest.raises(ValueError, match="all inputs of the pool are equal"):
        _ = found.default_eps
