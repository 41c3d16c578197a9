import pytest
import torch
import torch.nn.functional as F
from networks import parameters

from vat.models import MLP, GaussianNoise


@pytest.mark.parametrize("shape", [(12,), (3, 4), (3, 2, 2)])
def test_input_of_any_rank_is_flattened(shape):
    model = MLP(shape, 5, hidden=(8,))
    x = torch.randn(7, *shape)
    assert model(x).shape == (7, 5)
    torch.testing.assert_close(model(x), model(x.flatten(1)))


def test_parameter_counts_of_the_papers_networks():
    # DSVAT, semi-supervised MNIST: weights 784·1200 + 1200·1200 + 1200·10 = 2,392,800, no biases; scale and shift of
    # the three batch norms 2·(1200 + 1200 + 10) = 4,820.
    assert parameters(MLP((1, 28, 28), 10, batch_norm_logits=True)) == 2_397_620
    # TPAMI, semi-supervised MNIST: 784·1200 + 1200·600 + 600·300 + 300·150 + 150·10 = 1,887,300, the last layer's
    # biases 10, batch norms 2·(1200 + 600 + 300 + 150) = 4,500.
    assert parameters(MLP((784,), 10, hidden=(1200, 600, 300, 150), noise=0.5)) == 1_891_810
    # DSVAT, synthetic sets: (100·100 + 100) + (100·2 + 2).
    assert parameters(MLP((100,), 2, hidden=(100,), batch_norm=False, init="fan_in")) == 10_302


@pytest.mark.parametrize(("shape", "units"), [((4,), 64), ((30,), 120), ((1, 8, 8), 256), ((1, 28, 28), 1200), ((3, 32, 32), 1200)])
def test_hidden_layers_are_as_wide_as_the_inputs_ask_for(shape, units):
    linear = [layer for layer in MLP(shape, 3).layers if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in linear] == [units, units, 3]


def test_noise_has_its_standard_deviation_only_in_training_mode():
    torch.manual_seed(0)
    x = torch.full((1000, 1000), 3.0)
    layer = GaussianNoise(0.5)
    noise = layer(x) - x
    # The relative error of a standard deviation from n draws has sd 1 / √(2 n) = 7e-4, that of a mean 0.5 / √n = 5e-4.
    assert noise.std().item() == pytest.approx(0.5, rel=4e-3)
    assert abs(noise.mean().item()) < 2.5e-3
    assert torch.equal(layer.eval()(x), x)


def test_noise_is_added_to_the_rectified_output_of_every_hidden_layer():
    # With all weights and biases 0 the hidden outputs are 0 before the noise, and noise below 0 survives only after a
    # ReLU. The last weights then pass on the noise of the last hidden layer.
    torch.manual_seed(0)
    model = MLP((4,), 1000, hidden=(1000, 1000), batch_norm=False, noise=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.layers[-1].weight.copy_(torch.eye(1000))
    logits = model(torch.randn(100, 4))
    assert logits.std().item() == pytest.approx(0.5, rel=0.02)
    assert abs(logits.mean().item()) < 0.01
    assert sum(isinstance(layer, GaussianNoise) for layer in model.layers) == 2


def test_the_generators_state_decides_noise_and_dropout():
    model = MLP((6,), 3, hidden=(16,), noise=0.5, dropout=0.5, input_dropout=0.4)
    x = torch.randn(8, 6)
    passes = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        passes.append(model(x))
    assert torch.equal(passes[0], passes[1])
    assert not torch.allclose(passes[0], passes[2])


def test_evaluation_is_deterministic():
    model = MLP((6,), 3, hidden=(16,), noise=0.5, dropout=0.5, input_dropout=0.4).eval()
    x = torch.randn(8, 6)
    assert torch.equal(model(x), model(x))


def test_input_dropout_drops_the_input_and_dropout_the_hidden_units():
    x = torch.ones(8, 6)
    dropped = {"input": MLP((6,), 3, hidden=(16,), batch_norm=False, input_dropout=1.0)}
    dropped["hidden"] = MLP((6,), 3, hidden=(16,), batch_norm=False, dropout=1.0)
    first, last = dropped["input"].layers[2], dropped["input"].layers[-1]
    torch.testing.assert_close(dropped["input"](x), last(first.bias.relu()).expand(8, 3))
    torch.testing.assert_close(dropped["hidden"](x), dropped["hidden"].layers[-1].bias.expand(8, 3))


def test_fan_in_draws_weights_of_variance_one_over_fan_in_and_no_bias():
    torch.manual_seed(0)
    model = MLP((400,), 300, hidden=(900,), batch_norm=False, init="fan_in")
    first, last = (layer for layer in model.layers if isinstance(layer, torch.nn.Linear))
    # 360,000 and 270,000 draws: a variance's relative error has sd √(2 / n) < 0.3 %.
    assert first.weight.var().item() * 400 == pytest.approx(1.0, rel=0.015)
    assert last.weight.var().item() * 900 == pytest.approx(1.0, rel=0.015)
    # Normal, not uniform: a normal variable's fourth moment is 3 variances squared, a uniform one's 1.8.
    assert first.weight.pow(4).mean().item() * 400**2 == pytest.approx(3.0, rel=0.05)
    assert not first.bias.any()
    assert not last.bias.any()


def test_batch_norm_on_the_logits_standardises_them_at_initialisation():
    logits = MLP((6,), 3, hidden=(16,), batch_norm_logits=True)(torch.randn(64, 6))
    torch.testing.assert_close(logits.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.std(0, correction=0), torch.ones(3), atol=1e-2, rtol=0)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("batch_norm_logits", [True, False])
def test_gradients_reach_every_parameter(batch_norm, batch_norm_logits):
    torch.manual_seed(0)
    model = MLP((6,), 3, hidden=(16, 8), batch_norm=batch_norm, batch_norm_logits=batch_norm_logits, noise=0.1)
    F.cross_entropy(model(torch.randn(32, 6)), torch.randint(3, (32,))).backward()
    for name, parameter in model.named_parameters():
        # A bias under batch norm has a gradient of rounding noise, 1e-9.
        assert parameter.grad.abs().max() > 1e-5, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": ()}, r"hidden must hold at least one number, each >= 1, got \(\)"),
        ({"hidden": (8, 0)}, r"hidden must hold at least one number, each >= 1, got \(8, 0\)"),
        ({"dropout": 1.5}, "between 0 and 1, but got 1.5"),
        ({"input_dropout": -0.1}, "between 0 and 1, but got -0.1"),
        ({"noise": -0.5}, "must be >= 0, got -0.5"),
        ({"init": "xavier"}, "'default' or 'fan_in', got 'xavier'"),
    ],
)
def test_bad_arguments_are_refused_by_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLP((6,), 3, **arguments)
