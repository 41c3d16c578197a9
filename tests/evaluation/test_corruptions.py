"""Corruptions match their descriptions."""

import pytest
import torch
from networks import seeded

from vat.evaluation.corruptions import SEVERITIES, corrupt, corruptions


def test_features_get_only_noise_and_images_all_four():
    assert corruptions(torch.zeros(2, 5)) == ("noise",)
    assert corruptions(torch.zeros(2, 1, 8, 8)) == ("noise", "blur", "shift", "contrast")
    with pytest.raises(ValueError, match="kind='blur' is no corruption"):
        corrupt("blur", torch.zeros(2, 5), 1, seeded())


@pytest.mark.parametrize("kind", corruptions(torch.zeros(1, 1, 8, 8)))
def test_a_corruption_grows_with_its_severity_within_the_bounds(kind):
    x = corrupt("blur", torch.rand(20, 3, 16, 16, generator=seeded()), 5, seeded())  # smooth: a larger shift differs more
    away = [float((corrupt(kind, x, severity, seeded(), (0.0, 1.0)) - x).norm()) for severity in SEVERITIES]
    assert away == sorted(away)
    assert away[0] > 0
    worst = corrupt(kind, x, 5, seeded(), (0.0, 1.0))
    assert worst.shape == x.shape
    assert float(worst.min()) >= 0
    assert float(worst.max()) <= 1


def test_corruptions_match_their_names():
    x = torch.zeros(1, 1, 25, 25)
    x[0, 0, 12, 12] = 1.0
    for severity in (1, 5):
        place = torch.arange(25.0) - 12
        blurred = corrupt("blur", x, severity, seeded())[0, 0]
        assert float(blurred.sum()) == pytest.approx(1.0, abs=1e-5)
        assert float((blurred.sum(0) * place**2).sum() ** 0.5) == pytest.approx(max(0.02 * severity * 25, 0.45), abs=0.1)
        moved = corrupt("shift", x, severity, seeded())[0, 0]
        way = torch.stack([(moved.sum(d) * place).sum() for d in (0, 1)]).norm()
        assert float(way) == pytest.approx(0.04 * severity * 25, abs=1e-3)
    flat = corrupt("contrast", x, 5, seeded())
    assert float(flat.mean()) == pytest.approx(float(x.mean()), abs=1e-6)
    assert float(flat.max() - flat.min()) == pytest.approx(0.1, abs=1e-5)
    noise = corrupt("noise", torch.full((100, 1, 8, 8), 0.5), 1, seeded(), (-9.0, 11.0)) - 0.5
    assert float(noise.std()) == pytest.approx(0.08 * 20, rel=0.05)


def test_noise_on_inputs_without_bounds_is_a_share_of_their_spread():
    x = 3 * torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert float((corrupt("noise", x, 2, seeded()) - x).std()) == pytest.approx(2 * 0.2 * float(x.std()), rel=0.05)
