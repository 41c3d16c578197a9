"""Whitened pixels have the required covariance, and agree with numpy."""

import numpy as np
import pytest
import torch

from vat.data.whiten import ZCA


def correlated(n, d=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator) + 3


def test_whitened_examples_are_uncorrelated_with_variance_one(monkeypatch):
    monkeypatch.setattr("vat.data.whiten.ROWS_AT_A_TIME", 300)  # several chunks, so also their limits
    x = correlated(1000).view(1000, 3, 2, 2)
    white = ZCA(x)(x)
    assert white.shape == x.shape
    assert white.dtype == torch.float32
    flat = white.flatten(1).double()
    torch.testing.assert_close(flat.mean(0), torch.zeros(12, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(flat.T @ flat / 1000, torch.eye(12, dtype=torch.float64), atol=1e-3, rtol=0)


def test_nothing_is_rotated():
    """ZCA is the symmetric whitening map, the inverse square root of the covariance. Compared with numpy."""
    x = correlated(500)
    values, vectors = np.linalg.eigh(np.cov(x.double().numpy().T, bias=True))
    expected = vectors @ np.diag(values**-0.5) @ vectors.T
    np.testing.assert_allclose(ZCA(x).matrix.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_bytes_are_whitened_as_the_images_they_stand_for():
    x = torch.randint(256, (400, 1, 3, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    torch.testing.assert_close(ZCA(x)(x), ZCA(x.float() / 255)(x.float() / 255))


def test_directions_without_variance_are_mapped_to_zero():
    x = correlated(300)
    x[:, 4] = 7.0  # a constant pixel
    x[:, 5] = 2 * x[:, 6]  # and one that depends on others
    white = ZCA(x)(x)
    assert white.isfinite().all()
    assert white.abs().max() < 10
    assert white[:, 4].abs().max() < 1e-3
    flat = white.double()
    assert torch.linalg.matrix_rank(flat.T @ flat / 300, atol=0.01) == 10


@pytest.mark.parametrize(("x", "message"), [(torch.ones(1, 4), "at least 2 examples, got 1"), (torch.ones(5, 4), "got only equal ones")])
def test_too_little_to_estimate_from_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        ZCA(x)
