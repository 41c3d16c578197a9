import pytest
import torch
import torch.nn.functional as F
from networks import parameters

from vat.models import CNN


def test_parameter_counts():
    # 9·1·32 + 2·32 + 9·32·64 + 2·64 = 18,912, and a linear layer on 2·2·64 = 256 or 8·8·64 = 4,096 features.
    assert parameters(CNN((1, 8, 8), 10, channels=(32, 64))) == 18_912 + 2_570
    # Two more input channels add 2·9·32 = 576 weights.
    assert parameters(CNN((3, 32, 32), 10, channels=(32, 64))) == 18_912 + 576 + 40_970


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 9, 6), (1, 4, 4)])
def test_logits_have_a_row_an_image(shape):
    assert CNN(shape, 7)(torch.randn(3, *shape)).shape == (3, 7)


def test_an_image_of_one_pixel_after_the_poolings_is_the_smallest():
    model = CNN((1, 8, 8), 3, channels=(4, 4, 4))
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"height and width >= 8, got \(1, 8, 7\): resize the images"):
        CNN((1, 8, 7), 3, channels=(4, 4, 4))


def test_the_place_of_a_feature_matters():
    torch.manual_seed(0)
    model = CNN((1, 16, 16), 3).eval()
    image = torch.zeros(1, 1, 16, 16)
    image[..., 4:8, 4:8] = 1.0
    assert not torch.allclose(model(image), model(image.roll(4, 2)))


def test_dropout_and_batch_statistics_act_only_in_training_mode():
    torch.manual_seed(0)
    model = CNN((1, 8, 8), 3)
    x = torch.randn(16, 1, 8, 8)
    assert not torch.allclose(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    torch.testing.assert_close(model(x)[:2], model(x[:2]))


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_dropout_zeroes_its_share_of_the_features(share):
    torch.manual_seed(0)
    *stages, dropout, _ = CNN((1, 8, 8), 3, dropout=share).layers
    features = torch.nn.Sequential(*stages)(torch.randn(250, 1, 8, 8))
    dropped = dropout(features)[features > 0].eq(0).float().mean().item()
    assert dropped == pytest.approx(share, abs=0.01)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    model = CNN((1, 8, 8), 10)
    F.cross_entropy(model(torch.randn(50, 1, 8, 8)), torch.randint(10, (50,))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-5, name


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((1, 3, 8), {}, r"height and width >= 4, got \(1, 3, 8\): resize the images"),
        ((64,), {}, r"\(channels, height, width\) .* got \(64,\): .* use model=mlp"),
        ((1, 8, 8), {"channels": ()}, r"channels must hold at least one number, each >= 1, got \(\)"),
        ((1, 8, 8), {"channels": (8, 0)}, r"channels must hold at least one number, each >= 1, got \(8, 0\)"),
        ((1, 8, 8), {"dropout": 1.5}, "between 0 and 1, but got 1.5"),
    ],
)
def test_bad_arguments_are_refused_by_value(shape, arguments, message):
    with pytest.raises(ValueError, match=message):
        CNN(shape, 10, **arguments)
