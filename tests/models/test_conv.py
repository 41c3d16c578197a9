import pytest
import torch
import torch.nn.functional as F
from networks import parameters

from vat.models import ConvLarge, ConvSmall


def test_parameter_counts_of_the_papers_networks():
    # conv-small, CIFAR-10: 9·(3·96 + 2·96² + 96·192 + 2·192² + 192²) + 2·192² + 192·10 + 10, and 2 for each of the
    # 3·96 + 6·192 = 1,440 batch-norm channels.
    # 2,592 + 165,888 + 165,888 + 663,552 + 331,776 = 1,329,696; + 73,728 + 1,930 + 2,880.
    assert parameters(ConvSmall((3, 32, 32), 10)) == 1_408_234
    # conv-small, SVHN: 9·(3·64 + 2·64² + 64·128 + 3·128²) + 2·128² + 128·10 + 10 + 2·(3·64 + 6·128)
    # = 591,552 + 32,768 + 1,290 + 1,920.
    assert parameters(ConvSmall((3, 32, 32), 10, width=64)) == 627_530
    # conv-large: 9·(3·128 + 2·128² + 128·256 + 2·256² + 256·512) + 512·256 + 256·128 + 128·10 + 10, and 2 for each of
    # the 3·128 + 3·256 + 512 + 256 + 128 = 2,048 channels.
    # 3,456 + 294,912 + 294,912 + 1,179,648 + 1,179,648 = 2,952,576; + 131,072 + 32,768 + 1,290 + 4,096.
    assert parameters(ConvLarge((3, 32, 32), 10)) == 3_121_802
    # Batch norm on the logits adds 20 parameters and makes the 10 biases useless.
    assert parameters(ConvLarge((3, 32, 32), 10, top_bn=True)) == 3_121_812


@pytest.mark.parametrize("make", [ConvSmall, ConvLarge])
def test_logits_have_a_row_an_image_at_the_smallest_size_too(make):
    with torch.no_grad():
        assert make((3, 32, 32), 10)(torch.randn(2, 3, 32, 32)).shape == (2, 10)
        assert make((1, 12, 12), 4)(torch.randn(2, 1, 12, 12)).shape == (2, 4)


def test_global_average_ignores_a_shift_by_the_poolings_grid():
    # 4 pixels are one step of two poolings. A patch far from the borders on a background of zeros, which stays 0
    # through layers without biases: only the place of the same activations changes, not their average.
    torch.manual_seed(0)
    model = ConvSmall((3, 32, 32), 10, width=4).double().eval()
    image = torch.zeros(1, 3, 56, 56, dtype=torch.float64)
    image[..., 24:32, 24:32] = torch.randn(8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(image), model(image.roll((4, -4), (2, 3))))
    assert not torch.allclose(model(image), model(image.roll(1, 2)))


def test_dropout_and_batch_statistics_act_only_in_training_mode():
    torch.manual_seed(0)
    model = ConvSmall((3, 12, 12), 10, width=4)
    x = torch.randn(8, 3, 12, 12)
    assert not torch.allclose(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    torch.testing.assert_close(model(x)[:2], model(x[:2]))


def test_dropout_zeroes_half_of_what_follows_each_pooling():
    torch.manual_seed(0)
    model = ConvSmall((3, 32, 32), 10, width=8)
    pools = [i for i, layer in enumerate(model.layers) if isinstance(layer, torch.nn.MaxPool2d)]
    assert len(pools) == 2
    for i in pools:
        dropped = model.layers[: i + 2](torch.randn(8, 3, 32, 32))
        assert dropped.eq(0).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_running_statistics_move_by_a_hundredth():
    model = ConvSmall((3, 12, 12), 10, width=4, top_bn=True)
    x = torch.randn(8, 3, 12, 12)
    model(x)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)]
    torch.testing.assert_close(norms[0].running_mean, 0.01 * model.layers[0](x).mean((0, 2, 3)))
    assert [norm.momentum for norm in norms] == [0.01] * 10


@pytest.mark.parametrize("top_bn", [True, False])
def test_gradients_reach_every_parameter(top_bn):
    torch.manual_seed(0)
    model = ConvSmall((3, 12, 12), 10, width=4, top_bn=top_bn)
    F.cross_entropy(model(torch.randn(32, 3, 12, 12)), torch.randint(10, (32,))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-5, name


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((3, 11, 32), {}, r"height and width >= 12, got \(3, 11, 32\): resize the images"),
        ((784,), {}, r"\(channels, height, width\) .* got \(784,\): .* use model=mlp"),
        ((3, 32, 32), {"dropout": 1.5}, "between 0 and 1, but got 1.5"),
        ((3, 32, 32), {"width": 0}, "width must be >= 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_by_value(shape, arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvSmall(shape, 10, **arguments)
