"""The reference code on the page about the method computes the same as the package."""

import pytest
import torch
from torch import nn

from vat import VAT
from vat.reference import vat_loss, vat_loss_towards
from vat.step import Key, Step


def network(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 4)).double()


@pytest.mark.parametrize("direction", ["finite_difference", None])
@pytest.mark.parametrize("layers", [(), (nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2))], ids=["mlp", "conv"])
def test_the_reference_gives_the_loss_and_the_gradients_of_the_package(direction, layers):
    model = network(*layers)
    x = torch.randn(6, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step = Step(model, x, key=Key(3))
    ours = VAT(0.7, direction=direction).penalty(step)
    if direction is None:
        top = model(x).argmax(1)
        towards = (top + 1 + (step.uniform("class") * 3).long()) % 4
        reference = vat_loss_towards(model, x, towards, eps=0.7)
    else:
        reference = vat_loss(model, x, step.normal("direction"), eps=0.7, probe=1e-3 * float(x.flatten(1).norm(dim=1).mean()))
    torch.testing.assert_close(ours, reference, rtol=1e-7, atol=0)
    assert ours > 1e-3
    gradients = (torch.autograd.grad(loss, [*model.parameters()]) for loss in (ours, reference))
    for g, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(g, wanted, rtol=1e-5, atol=1e-9)
