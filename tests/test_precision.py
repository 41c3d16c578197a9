from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vat import local_distributional_smoothness
from vat.precision import coarse, full_precision
from vat.step import Key

DENSE, CONVOLVES = nn.Linear(3, 2), nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten())


@pytest.fixture
def conv():
    """Set the precision of convolutions on a GPU, and restore it afterwards."""
    before = torch.backends.cudnn.conv.fp32_precision
    yield torch.backends.cudnn.conv
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize(
    ("dtype", "module", "setting", "supported", "expected"),
    [
        (torch.float32, CONVOLVES, "tf32", True, "TF32"),
        (torch.float32, None, "tf32", True, "TF32"),
        (torch.float32, DENSE, "tf32", True, None),
        (torch.float32, CONVOLVES, "ieee", True, None),
        (torch.float32, CONVOLVES, "tf32", False, None),
        (torch.float64, CONVOLVES, "tf32", True, None),
        (torch.bfloat16, DENSE, "ieee", False, "half precision"),
    ],
)
def test_a_gpus_precision_follows_from_its_settings(conv, monkeypatch, dtype, module, setting, supported, expected):
    conv.fp32_precision = setting
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: supported)
    x = SimpleNamespace(dtype=dtype, device=torch.device("cuda"))
    assert coarse(x, torch.zeros(1), module) == expected


def test_a_cpus_precision_follows_from_the_inputs(conv):
    conv.fp32_precision = "tf32"
    assert coarse(torch.zeros(2, 3), torch.zeros(2), CONVOLVES) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert coarse(torch.zeros(2, 3), torch.zeros(2), DENSE) == "half precision"


def test_half_precision_inside_the_network_is_detected():
    x, y = torch.zeros(2, 3), torch.zeros(2)
    assert coarse(x, y, DENSE) is None
    assert coarse(x, y.bfloat16(), None) == "half precision"  # autocast in its forward
    assert coarse(x, y, nn.Linear(3, 2).half()) == "half precision"  # converts a copy of the input to its dtype


def test_full_precision_restores_the_settings(conv):
    conv.fp32_precision = "tf32"
    with torch.autocast("cpu", torch.bfloat16):
        with suppress(KeyError), full_precision(torch.device("cpu")):
            assert not torch.is_autocast_enabled("cpu")
            assert conv.fp32_precision != "tf32"
            assert not torch.backends.cudnn.allow_tf32  # reading must not raise: torch.backends.cudnn.flags reads it
            raise KeyError
        assert torch.is_autocast_enabled("cpu")
    assert conv.fp32_precision == "tf32"
    assert torch.backends.cudnn.allow_tf32


def test_full_precision_changes_nothing_that_is_full(conv):
    conv.fp32_precision = "ieee"
    with full_precision(torch.device("cpu")):
        assert conv.fp32_precision == "ieee"
    assert conv.fp32_precision == "ieee"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lds_is_measured_in_full_precision_under_autocast(dtype, recwarn):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5))
    x = torch.randn(8, 20).to(dtype)
    expected = local_distributional_smoothness(net, x.float(), eps=0.5, key=Key(1))
    with torch.autocast("cpu", torch.bfloat16):
        measured = local_distributional_smoothness(net, x, eps=0.5, key=Key(1))
    assert torch.equal(measured, expected)
    assert not [warning for warning in recwarn if "noise" in str(warning.message)]
