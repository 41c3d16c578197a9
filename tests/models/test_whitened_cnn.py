import csv

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vat.data.sets.digits import Digits
from vat.models import Normalize, WhitenedCNN, whiten, whitening_layers
from vat.models.whitened_cnn import PatchWhitening


def correlated(n=200, channels=3, side=9):
    """Images of mean 0 with correlated neighbouring pixels and channels."""
    generator = torch.Generator().manual_seed(0)
    x = F.avg_pool2d(torch.randn(n, 1, side + 2, side + 2, generator=generator), 3, stride=1)
    return x + 0.2 * torch.randn(n, channels, side, side, generator=generator)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_parameter_count():
    # Whitening: 24 biases. Blocks from i to o channels: 9·i·o + 9·o² + 4·o: 50,944 (24 to 64), 738,304 (64 to 256), 1,180,672; head 2,560.
    assert parameters(WhitenedCNN((3, 32, 32), 10)) == 24 + 50_944 + 738_304 + 1_180_672 + 2_560


def test_whitened_patches_are_uncorrelated_and_of_variance_1():
    x = correlated()
    layer = PatchWhitening(3).double()
    layer.fit(x)
    inside = layer(x.double())[:, :12, :-1, :-1]  # without the padding; the other twelve filters are the negatives of these
    values = inside.permute(0, 2, 3, 1).reshape(-1, 12)
    second_moments = values.T @ values / len(values)
    # The layer adds 5e-4 to variances, which are at least 0.01 here. The filters are float32.
    torch.testing.assert_close(second_moments, torch.eye(12, dtype=torch.float64), atol=0.05, rtol=0)
    off_diagonal = second_moments - second_moments.diag().diag()
    assert off_diagonal.abs().max() < 1e-5


def test_filters_come_in_pairs_of_opposite_sign():
    x = correlated()
    layer = PatchWhitening(3)
    layer.fit(x)
    found = layer(x)
    torch.testing.assert_close(found[:, :12], -found[:, 12:])
    assert found.shape == (200, 24, 9, 9)


def test_before_it_is_fitted_each_filter_copies_a_pixel():
    x = correlated(n=2)
    padded = F.pad(x, (0, 1, 0, 1))
    pixels = [padded[:, c, i : i + 9, j : j + 9] for c in range(3) for i in (0, 1) for j in (0, 1)]
    torch.testing.assert_close(PatchWhitening(3)(x)[:, :12], torch.stack(pixels, 1))


def test_a_pixel_that_never_varies_gives_finite_filters():
    layer = PatchWhitening(3)
    layer.fit(torch.zeros(4, 3, 8, 8))
    assert layer.filters.isfinite().all()


def test_many_images_give_the_filters_of_all_of_them_together():
    x = correlated(n=1200)
    layer, other = PatchWhitening(3), PatchWhitening(3)
    layer.fit(x)
    other.fit(x.flip(0))
    y = correlated(n=1)
    for a, b in zip(layer(y)[0], other(y)[0], strict=True):  # an eigenvector has no sign
        torch.testing.assert_close(a.abs(), b.abs(), rtol=1e-3, atol=1e-4)


def test_whitening_sees_what_the_layers_before_it_make_of_the_images():
    x = 5 * correlated() + 2
    mean, std = [2.0, 2.0, 2.0], [5.0, 5.0, 5.0]
    network = nn.Sequential(Normalize(mean, std), WhitenedCNN((3, 9, 9), 10, widths=(4, 4)))
    alone = PatchWhitening(3)
    alone.fit(Normalize(mean, std)(x))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    whiten(network, x)
    (layer,) = whitening_layers(network)
    assert torch.equal(layer.filters, alone.filters)
    after = network.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["1.whitening.filters"]
    assert not layer._forward_pre_hooks
    assert network.training


def test_a_network_without_whitening_is_not_even_called():
    def refuse(module, inputs):
        raise AssertionError

    network = nn.Linear(3, 2)
    network.register_forward_pre_hook(refuse)
    whiten(network, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("shape", "num_classes", "widths"), [((3, 32, 32), 10, (64, 256, 256)), ((1, 8, 8), 4, (4, 4, 4)), ((3, 9, 13), 2, (5,))]
)
def test_logits_have_a_row_an_image(shape, num_classes, widths):
    with torch.no_grad():
        assert WhitenedCNN(shape, num_classes, widths=widths)(torch.randn(2, *shape)).shape == (2, num_classes)


def test_mirrored_images_share_their_logits_only_in_evaluation():
    torch.manual_seed(0)
    plain, mirrored = WhitenedCNN((3, 8, 8), 10, widths=(6, 6)), WhitenedCNN((3, 8, 8), 10, widths=(6, 6), mirror=True)
    mirrored.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(plain(x), mirrored(x))
    plain.eval(), mirrored.eval()
    mirrored.load_state_dict(plain.state_dict())
    torch.testing.assert_close(mirrored(x), (plain(x) + plain(x.flip(3))) / 2)
    torch.testing.assert_close(mirrored(x), mirrored(x.flip(3)))
    assert not torch.allclose(plain(x), plain(x.flip(3)))


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    model = WhitenedCNN((3, 8, 8), 10, widths=(16, 16))
    F.cross_entropy(model(torch.randn(32, 3, 8, 8)), torch.randint(10, (32,))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((3, 32, 32), {"widths": ()}, r"widths must hold at least one number, each >= 1, got \(\)"),
        ((3, 32, 32), {"widths": (8, 0)}, r"widths must .* got \(8, 0\)"),
        ((3, 7, 32), {}, r"height and width >= 8, got \(3, 7, 32\)"),
        ((100,), {}, "input_shape must be"),
    ],
)
def test_values_out_of_range_are_refused(shape, arguments, message):
    with pytest.raises(ValueError, match=message):
        WhitenedCNN(shape, 10, **arguments)


def test_a_run_whitens_by_its_training_images_and_every_command_sees_the_same_network(job, tmp_path):
    """The digits' pool, standardised, as the layer receives it; predictions are those of the mean over the mirror images."""
    from vat.runs import exporting, predicting, records

    ran = job("model=whitened_cnn", "model.widths=[8,8]", "model.mirror=true", "test=none")
    network = records.load_network(ran.checkpoint)
    (layer,) = whitening_layers(network)
    digits = Digits(seed=0)
    digits.setup()
    rows = digits.split.unlabeled
    assert len(rows) <= 2000  # all of them
    expected = PatchWhitening(1)
    expected.fit(network[0](digits.x[rows]) if isinstance(network, nn.Sequential) else digits.x[rows])
    assert torch.equal(layer.filters, expected.filters)

    exported, _ = exporting.export(ran.checkpoint, "torch_export")
    saved = torch.load(ran.checkpoint, weights_only=True)
    x = digits.x[digits.split.test[:20]]
    with torch.no_grad():
        logits = network(x)
        torch.testing.assert_close(torch.export.load(exported).module()(x), logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(x.flip(3)), logits)
    preparation = saved["record"]["preparation"]
    raw = x if preparation is None else x * torch.tensor(preparation["std"]) + torch.tensor(preparation["mean"])
    np.savez(tmp_path / "rows.npz", x=raw.numpy())
    predicting.predict(ran.checkpoint, tmp_path / "rows.npz", tmp_path / "out.csv")
    with open(tmp_path / "out.csv") as file:
        found = [row["prediction"] for row in csv.DictReader(file)]
    assert found == [saved["record"]["class_names"][c] for c in logits.argmax(1).tolist()]
