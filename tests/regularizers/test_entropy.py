import pytest
import torch
from networks import network
from torch import nn
from torch.distributions import Categorical

from vat import Entropy, Step
from vat.step import Key


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_penalty_and_gradient_are_those_of_the_mean_entropy_of_the_predictions(training):
    module = network(norm=True).train(training)
    x = torch.randn(6, 5, dtype=torch.float64)
    penalty = Entropy(weight=0.5).term(Step(module, x, key=Key(5), live=True))
    wanted = 0.5 * Categorical(logits=module(x)).entropy().mean()
    torch.testing.assert_close(penalty, wanted)
    for got, g in zip(*(torch.autograd.grad(v, module.parameters()) for v in (penalty, wanted)), strict=True):
        torch.testing.assert_close(got, g)


def test_gradient_in_the_logits_is_the_closed_form():
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shift = nn.Parameter(torch.zeros(6, 4, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(Entropy()(ShiftedBy(shift), x), shift)
    p = x.softmax(1)
    H = -(p * p.log()).sum(1, keepdim=True)
    torch.testing.assert_close(gradient, -p * (p.log() + H) / 6)


class ShiftedBy(nn.Module):
    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, x):
        return x + self.shift


@pytest.mark.parametrize("logits", [[0.0, 1e4, -1e4], [1e30, -1e30, 0.0]])
def test_certain_predictions_have_no_entropy_and_a_finite_gradient(logits):
    shift = nn.Parameter(torch.zeros(1, 3))
    penalty = Entropy()(ShiftedBy(shift), torch.tensor([logits]))
    penalty.backward()
    assert penalty.item() == 0
    assert shift.grad.isfinite().all()
