"""J d by dual numbers, compared with the dense Jacobian in float64."""

import pytest
import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.functional import jacobian
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from vat.forward_mode import jacobian_vector_product


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1, bias=False))

    def forward(self, x):
        return (x + self.branch(x)).relu()


class OwnFilters(nn.Module):
    """Convolves with filters that it computes from the input, so both arguments need a derivative."""

    def forward(self, x):
        return nn.functional.conv2d(x, weight=x.mean(0, keepdim=True).repeat(2, 1, 1, 1)[..., :3, :3], padding=1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(8, 24)

    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(*self.mix(x).chunk(3, -1))


class Double(Function):
    """A function without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class Foreign(nn.Module):
    def forward(self, x):
        return Double.apply(x).tanh()


class Recurrent(nn.Module):
    """All results of an LSTM: its outputs, and its last h and c."""

    def __init__(self, **options):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True, **options)

    def forward(self, x):
        outputs, last = self.lstm(x)
        return torch.cat([outputs.flatten(1), *(state.transpose(0, 1).flatten(1) for state in last)], 1)


NETWORKS = {
    "lstm": (Recurrent, (5, 3)),
    "lstm, two layers, two sides": (lambda: Recurrent(num_layers=2, bidirectional=True), (5, 3)),
    "lstm, no bias": (lambda: Recurrent(bias=False, bidirectional=True), (5, 3)),
    "lstm, projected": (lambda: Recurrent(proj_size=2), (5, 3)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), (3, 8)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding="same", groups=2), (4, 5, 6)),
    "conv2d, no bias, dilated": (lambda: nn.Conv2d(2, 3, 3, dilation=2, bias=False), (2, 7, 7)),
    "conv2d, circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 3, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 2, 3, stride=2, output_padding=1), (3, 4, 4)),
    "batch norm 1d": (lambda: nn.BatchNorm1d(5), (5,)),
    "batch norm 2d": (lambda: nn.BatchNorm2d(3), (3, 4, 4)),
    "batch norm without weights": (lambda: nn.BatchNorm2d(3, affine=False), (3, 4, 4)),
    "batch norm without statistics": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (3, 4, 4)),
    "residual": (Residual, (4, 5, 5)),
    "own filters": (OwnFilters, (2, 5, 5)),
    "pooling": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (2, 7, 7)),
    "attention": (Attention, (3, 8)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU()), (6,)),
    "group norm": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU()), (4, 3, 3)),
    "constant": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Hardtanh(50, 60)), (1, 4, 4)),
}


def prepared(name, training=True):
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    network = make().double().train(training)
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    x, d = torch.randn(2, 6, *shape, dtype=torch.float64)

    def function(x):  # from the same statistics each time
        return functional_call(network, {name: b.clone() for name, b in network.named_buffers()}, (x,))

    return function, x, d


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_dense_jacobian_times_d(name, training):
    function, x, d = prepared(name, training)
    matrix = jacobian(function, x)
    expected = matrix.flatten(-x.dim()) @ d.flatten()
    found = jacobian_vector_product(function, x, d)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert not found.requires_grad


def test_statistics_move_as_in_a_plain_pass():
    plain, dual = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    x, d = torch.randn(2, 6, 3, 4, 4)
    plain(x)
    jacobian_vector_product(dual, x, d)
    assert int(dual.num_batches_tracked) == 1
    for found, expected in zip(dual.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(found, expected)


def test_linear_layers_and_convolutions_take_two_operators_and_batch_norm_one_of_each():
    """torch's own rules: three, and a chain of some thirty elementwise operators."""
    counts = {}

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.overloadpacket.__name__
            counts[name] = counts.get(name, 0) + 1
            return func(*args, **(kwargs or {}))

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    x, d = torch.randn(2, 6, 3, 8, 8)
    with Count():
        jacobian_vector_product(network, x, d)
    assert counts["convolution"] == 2
    assert counts["addmm"] + counts["mm"] == 2
    assert counts["native_batch_norm"] == counts["native_batch_norm_backward"] == 1
    assert not {"mul", "add", "sub", "div", "mean", "sum"} & counts.keys()


@pytest.mark.parametrize("network", [Foreign(), lambda x: torch.ones(6, 2)], ids=["no rule", "no derivative"])
def test_without_a_forward_derivative_the_result_is_none(network):
    assert jacobian_vector_product(network, *torch.randn(2, 6, 4)) is None


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_a_compiled_network_gives_the_result_of_the_network(backend):
    torch._dynamo.reset()
    network = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU())
    x, d = torch.randn(2, 8, 1, 6)
    compiled = torch.compile(network, backend=backend)
    compiled(x)
    found = jacobian_vector_product(compiled, x, d)
    torch.testing.assert_close(found, jacobian_vector_product(network, x, d))


def test_an_empty_batch_has_none():
    assert jacobian_vector_product(nn.Linear(4, 3), torch.zeros(0, 4), torch.zeros(0, 4)) is None
