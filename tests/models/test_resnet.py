import pytest
import torch
import torch.nn.functional as F
from networks import parameters

from vat.models import WideResNet


def test_parameter_count_is_that_of_oliver_et_al():
    # First convolution 9·3·16 = 432. A unit from a to b channels has 2·a + 9·a·b + 2·b + 9·b², and a·b for the
    # projection if a ≠ b. Group 1: 14,432 (16 to 32) + 3·18,560; group 2: 57,536 + 3·73,984; group 3: 229,760 +
    # 3·295,424. Last batch norm 256, linear 1,290. The sum is the published count, so no tolerance is needed.
    assert parameters(WideResNet((3, 32, 32), 10)) == 1_467_610
    # WRN-10-1: 432 + 2·(16 + 16) + 2·9·16² + (16 to 32) 14,432 + (32 to 64) 57,536 + 2·64 + 64·10 + 10.
    assert parameters(WideResNet((3, 32, 32), 10, depth=10, width=1)) == 77_850


@pytest.mark.parametrize(("shape", "num_classes"), [((3, 32, 32), 10), ((1, 8, 8), 4)])
def test_logits_have_a_row_an_image(shape, num_classes):
    with torch.no_grad():
        assert WideResNet(shape, num_classes)(torch.randn(2, *shape)).shape == (2, num_classes)


def test_global_average_ignores_a_shift_by_the_strides_grid():
    # Two strides of 2 make a grid of 4 pixels. A patch on a background of zeros, which stays 0 through layers without
    # biases, and far enough from the borders for the 7 convolutions of a WRN-10 to stay clear of them.
    torch.manual_seed(0)
    model = WideResNet((3, 32, 32), 10, depth=10, width=1).double().eval()
    image = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    image[..., 28:36, 28:36] = torch.randn(8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(image), model(image.roll((4, -4), (2, 3))))
    assert not torch.allclose(model(image), model(image.roll(1, 2)))


def test_only_the_first_unit_s_shortcut_starts_after_the_activation():
    model = WideResNet((3, 8, 8), 10, depth=16).eval()
    seen = {}
    for name, module in model.named_modules():
        if name.endswith(("norm1", "shortcut")):
            module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)}))
    model(torch.randn(2, 3, 8, 8))
    raw = [torch.equal(seen[name][0], seen[name.replace("shortcut", "norm1")][0]) for name in seen if name.endswith("shortcut")]
    assert raw == [False, True, True, True, True, True]
    first = F.leaky_relu(seen["layers.1.norm1"][1], 0.1)
    assert torch.equal(seen["layers.1.shortcut"][0], first)


def test_evaluation_is_deterministic_and_treats_each_image_alone():
    model = WideResNet((3, 8, 8), 10, depth=10, width=1).eval()
    x = torch.randn(8, 3, 8, 8)
    assert torch.equal(model(x), model(x))
    torch.testing.assert_close(model(x)[:2], model(x[:2]))


def test_initial_weights_have_the_variances_of_he_and_glorot():
    torch.manual_seed(0)
    model = WideResNet((3, 32, 32), 10)
    widest = max((m for m in model.modules() if isinstance(m, torch.nn.Conv2d)), key=lambda m: m.weight.numel())
    # 2 / (9·128) from 147,456 draws: a variance's relative error has sd √(2 / n) = 0.4 %.
    assert widest.weight.var().item() * 9 * 128 == pytest.approx(2.0, rel=0.02)
    # 2 / (128 + 10) from 1,280 draws: sd 4 %.
    assert model.layers[-1].weight.var().item() * 138 == pytest.approx(2.0, rel=0.2)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    model = WideResNet((3, 8, 8), 10, depth=10, width=1)
    F.cross_entropy(model(torch.randn(32, 3, 8, 8)), torch.randint(10, (32,))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-5, name


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((3, 32, 32), {"depth": 27}, r"depth must be 10, 16, .*, got 27"),
        ((3, 32, 32), {"depth": 4}, r"depth must be 10, 16, .*, got 4"),
        ((3, 32, 32), {"width": 0}, "width must be >= 1, got 0"),
        ((32, 32), {}, r"\(channels, height, width\) .* got \(32, 32\): .* use model=mlp"),
    ],
)
def test_bad_arguments_are_refused_by_value(shape, arguments, message):
    with pytest.raises(ValueError, match=message):
        WideResNet(shape, 10, **arguments)
