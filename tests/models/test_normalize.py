import pytest
import torch

from vat.models import Normalize


@pytest.mark.parametrize("shape", [(4, 2), (4, 2, 5), (4, 2, 3, 3)])
def test_each_channel_is_standardised(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    y = Normalize((0.5, -1.0), (2.0, 0.25))(x)
    torch.testing.assert_close(y[:, 0], (x[:, 0] - 0.5) / 2.0)
    torch.testing.assert_close(y[:, 1], (x[:, 1] + 1.0) / 0.25)


def test_it_moves_and_is_saved_with_its_network():
    layer = Normalize((0.5,), (2.0,))
    assert set(layer.state_dict()) == {"mean", "std"}
    assert not list(layer.parameters())
    assert layer.double()(torch.ones(1, 1, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(("mean", "std"), [((0.0,), (1.0, 1.0)), ((0.0,), (0.0,)), ((0.0,), (-1.0,))])
def test_an_impossible_standardisation_is_refused(mean, std):
    with pytest.raises(ValueError, match="must have the same length, and std must be > 0"):
        Normalize(mean, std)
