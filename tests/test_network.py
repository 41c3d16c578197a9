"""State that real layers keep in plain attributes, and the cost to protect it."""

import random
import time

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric

from vat import VAT
from vat.network import Network


def rows(n=6, d=5):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1))


class Experts(nn.Module):
    """A mixture of experts that stores losses in an attribute and in a list."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts, self.losses = nn.Linear(5, 2), nn.ModuleList(nn.Linear(5, 5) for _ in range(2)), []

    def forward(self, x):
        gates = self.gate(x).softmax(1)
        self.aux_loss = gates.mean(0).square().sum()
        self.losses.append(self.aux_loss)
        return sum(gates[:, i, None] * expert(x) for i, expert in enumerate(self.experts))


class Rotary(nn.Module):
    """Keeps a table for the longest batch, as rotary embeddings do: its length in an attribute, the table in a buffer."""

    def __init__(self):
        super().__init__()
        self.layer, self.length = nn.Linear(5, 5), 0

    def forward(self, x):
        if len(x) > self.length:
            self.length = len(x)
            self.register_buffer("table", torch.arange(len(x)).cos()[:, None], persistent=False)
        return self.layer(x) * self.table[: len(x)]


class Memory(nn.Module):
    """A stateful recurrent network. The state is in a plain attribute, or in a dict as in spiking layers."""

    def __init__(self):
        super().__init__()
        self.layer, self.hidden, self.memories = nn.Linear(5, 5), None, {"v": 0.0}

    def forward(self, x):
        self.memories["v"] = self.memories["v"] * 0.5 + self.layer(x)
        self.hidden = self.memories["v"].tanh().detach() if self.hidden is None else self.hidden * 0.5 + x
        return self.memories["v"] + self.hidden


class InPlace(nn.Module):
    """Counts in place in a tensor that is not a buffer."""

    def __init__(self):
        super().__init__()
        self.layer, self.count = nn.Linear(5, 5), torch.zeros(())

    def forward(self, x):
        self.count += 1
        return self.layer(x) * self.count


class Metered(nn.Module):
    """Updates a metric of torchmetrics in `forward`."""

    def __init__(self):
        super().__init__()
        self.layer, self.metric = nn.Linear(5, 5), MeanMetric()

    def forward(self, x):
        out = self.layer(x)
        self.metric.update(out.detach())
        return out


def plain(module):
    """Values of everything that the module's attributes hold."""
    seen = {}
    for name, layer in module.named_modules():
        for key, value in {**{k: v for k, v in vars(layer).items() if not k.startswith("_")}, **layer._buffers}.items():
            items = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
            seen[name, key] = [item.tolist() if isinstance(item, torch.Tensor) else item for item in items]
    return seen


@pytest.mark.parametrize("used", [False, True], ids=["new", "used before"])
@pytest.mark.parametrize("kind", [Experts, Rotary, Memory, InPlace, Metered])
def test_passes_agree_and_what_layers_keep_does_not_change(kind, used):
    torch.manual_seed(0)
    module = kind()
    if used:
        module(2 * rows(6 if kind is Memory else 3))
    before = plain(module)
    assert VAT(0.0, direction="random")(module, rows()) == 0  # each pass starts from the same state
    VAT(1.0)(module, rows()).backward()
    assert plain(module) == before


def test_a_loss_that_a_layer_kept_still_trains_it():
    module = Experts()
    module(rows())
    loss, losses = module.aux_loss, module.losses
    penalty = VAT(1.0)(module, rows())
    assert module.aux_loss is loss is losses[0]
    assert module.losses is losses
    (penalty + module.aux_loss).backward()
    assert module.gate.weight.grad is not None


class DrawsElsewhere(nn.Module):
    """Skips layers by Python's generator and adds numpy's noise, as layer drop and SpecAugment do."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(8))

    def forward(self, x):
        for layer in self.layers:
            if random.random() < 0.5:
                x = layer(x).tanh()
        return x + torch.from_numpy(np.random.randn(*x.shape)).to(x) * torch.from_numpy(np.random.permutation(5)).to(x)


def test_noise_from_python_and_numpy_is_the_same_in_all_passes_and_their_generators_stay_as_they_were():
    torch.manual_seed(0)
    module, x = DrawsElsewhere(), rows()
    np.random.seed(1)
    np.random.randn()  # numpy draws pairs and keeps the second number
    random.seed(1)
    before = random.getstate(), repr(np.random.get_state())
    for _ in range(10):
        assert VAT(0.0, direction="random")(module, x) == 0
    assert (random.getstate(), repr(np.random.get_state())) == before
    outputs = [Network(module)(x, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_a_generator_of_numpy_that_cannot_be_seeded_again_and_passes_in_passes_keep_their_streams():
    class Nested(nn.Module):
        def forward(self, x):
            first = np.random.rand()
            Network(DrawsElsewhere())(rows(), seed=9)
            return x * first + np.random.rand()

    own = np.random.get_bit_generator()
    wanted = np.random.RandomState(np.random.PCG64(3)).rand(2)
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        assert np.random.rand() == wanted[0]
        output = Network(Nested())(torch.ones(1, 1), seed=4)
        assert np.random.rand() == wanted[1]
    finally:
        np.random.set_bit_generator(own)
    first, second = np.random.RandomState(4).rand(2)
    assert output.item() == pytest.approx(first + second)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.size, self.heads, self.name = 5, 2, "block"
        self.first, self.second, self.norm = nn.Linear(2, 2), nn.Linear(2, 2), nn.LayerNorm(2)


def test_preparing_the_state_of_559_modules_takes_less_than_a_millisecond():
    module = nn.Sequential(*[nn.Sequential(Block(), nn.Dropout()) for _ in range(93)])
    assert len([*module.modules()]) == 559

    def seconds():
        began = time.perf_counter()
        Network(module)
        return time.perf_counter() - began

    assert min(seconds() for _ in range(50)) < 1e-3
