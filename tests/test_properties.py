"""Properties of every direction for inputs of any shape, dtype and scale and predictions of any confidence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vat import VAT
from vat.directions import DIRECTIONS
from vat.norms import NORMS
from vat.regularizers import local_distributional_smoothness
from vat.step import Key, Step

PRECISION = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


class Scaled(nn.Module):
    """A network for inputs of one scale, as a user would normalise them, with logits of a chosen confidence."""

    def __init__(self, features, classes, scale, confidence):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(features, 8), nn.Tanh(), nn.Linear(8, classes))
        self.scale, self.confidence = scale, confidence

    def forward(self, x):
        return self.confidence * self.layers(x / self.scale)


@st.composite
def cases(draw):
    """A network, a batch, a radius that fits the batch's scale, and the seed."""
    seed = draw(st.integers(0, 2**32 - 1))
    number = draw(st.sampled_from([0, 1, 2, 5]))
    shape = draw(st.sampled_from([(1,), (7,), (2, 3), (1, 4, 4), (3, 2, 2, 2)]))
    dtype = draw(st.sampled_from(list(PRECISION)))
    scale = 10.0 ** draw(st.integers(-20, 20))
    classes = draw(st.sampled_from([1, 2, 3, 10, 1000]))
    confidence = draw(st.sampled_from([0.0, 1e-6, 1.0, 30.0, 1e4]))
    eps = scale * draw(st.sampled_from([1e-3, 1.0, 30.0]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Scaled(int(torch.tensor(shape).prod()), classes, scale, confidence).to(dtype)
        x = (scale * draw(st.sampled_from([0.0, 1.0])) * torch.randn(number, *shape)).to(dtype)
    return network, x, eps, seed


@pytest.mark.parametrize("examples", [30, pytest.param(2000, marks=pytest.mark.long)])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.filterwarnings("ignore:finite differences are noise", "ignore:x is torch.bfloat16")
def test_loss_and_gradients_are_finite_and_the_perturbation_has_its_length(direction, norm, examples, record_property):
    @settings(max_examples=examples)
    @given(cases())
    def check(case):
        network, x, eps, seed = case
        vat = VAT(eps, direction=direction, norm=norm)
        step = Step(network, x, key=Key(seed))
        r = vat.virtual_adversarial_perturbation(step)
        assert r.shape == x.shape
        assert r.dtype == x.dtype
        order = 2 if norm == "l2" else float("inf")
        lengths = torch.linalg.vector_norm(r.double().flatten(1), ord=order, dim=1)
        torch.testing.assert_close(lengths, torch.full_like(lengths, eps), rtol=PRECISION[x.dtype], atol=0)
        loss = vat.term(Step(network, x, key=Key(seed)))
        assert loss.dim() == 0
        assert 0 <= loss.item() < float("inf")
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
        lds = local_distributional_smoothness(network, x, eps=eps, direction=direction, norm=norm, key=Key(seed))
        assert lds.shape == x.shape[:1]
        assert ((lds >= 0) & lds.isfinite()).all()

    check()
    record_property("examples of the properties", examples)
