"""A first call finds the causes of silent wrong numbers."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vat import VAT, Entropy, RandomPerturbation, local_distributional_smoothness
from vat.directions import exact


def rows(*shape, dtype=torch.float32):
    return torch.randn(shape or (6, 5), generator=torch.Generator().manual_seed(1), dtype=dtype)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


class Noisy(nn.Module):
    """Draws from its own generator, which no step can see."""

    def __init__(self):
        super().__init__()
        self.layer, self.draw = nn.Linear(5, 3), np.random.default_rng(0).standard_normal

    def forward(self, x):
        return self.layer(x) + torch.from_numpy(self.draw(3)).to(x)


def test_passes_that_differ_without_r_give_one_warning_for_a_network():
    model, vat = Noisy(), VAT(1.0)
    with pytest.warns(UserWarning, match=r"differ by up to .* without any r.*the network's own generator.*module=\[model, other\]"):
        vat(model, rows())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vat(model, rows())
        VAT(2.0)(network(), rows())
        VAT(2.0)(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)), rows())
        Entropy()(Noisy(), rows())  # compares nothing


def test_a_module_that_was_not_passed_gives_a_warning():
    hidden, calls = nn.BatchNorm1d(5, momentum=0.5).eval(), []

    def head(x):
        calls.append(1)
        return hidden(x)[:, :3] * len(calls)

    with pytest.warns(UserWarning, match="differ by up to"):
        RandomPerturbation(1.0)(head, rows(), module=())


# ----------------------------------------------------------------------------------------------------------------- derivatives


class Hidden(Function):
    """A tanh with its own backward pass, which torch cannot differentiate."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            return g.detach() * (1 - x.tanh().square())


class OnceDifferentiable(Hidden):
    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh().square())


class Visible(Hidden):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh().square())


class Custom(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.function = nn.Linear(5, 8), nn.Linear(8, 3), function

    def forward(self, x):
        return self.second(self.function.apply(self.first(x)))


WITH_TWO_DERIVATIVES = {
    "exact": {"direction": "exact"},
    "partial": {"direction": partial(exact, num_power_iterations=2)},
    "finite differences, through r": {"direction": "finite_difference", "gradient_through_r": True},
    "margin, through r": {"direction": "margin", "gradient_through_r": True},
}


@pytest.mark.parametrize("options", WITH_TWO_DERIVATIVES.values(), ids=WITH_TWO_DERIVATIVES)
@pytest.mark.parametrize("function", [Hidden, OnceDifferentiable])
def test_a_backward_pass_that_cannot_be_differentiated_is_refused(function, options):
    with pytest.raises(RuntimeError, match=r"cannot be differentiated|marked with @once_differentiable"):
        VAT(0.5, **options)(Custom(function), rows())
    if "gradient_through_r" not in options:
        with pytest.raises(RuntimeError, match=r"cannot be differentiated|once_differentiable"):
            local_distributional_smoothness(Custom(function), rows(), eps=0.5, direction="exact")


@pytest.mark.parametrize("options", WITH_TWO_DERIVATIVES.values(), ids=WITH_TWO_DERIVATIVES)
def test_a_differentiable_backward_pass_is_accepted(options):
    torch.manual_seed(1)
    wanted = VAT(0.5, **options)(nn.Sequential(Custom(Visible).first, nn.Tanh(), Custom(Visible).second), rows())
    torch.manual_seed(1)
    torch.testing.assert_close(VAT(0.5, **options)(Custom(Visible), rows()), wanted)
    VAT(0.5, direction="margin")(Custom(Hidden), rows()).backward()  # it needs only one derivative


# -------------------------------------------------------------------------------------------------------------------- precision


class HalfInside(nn.Module):
    def __init__(self, dtype=torch.bfloat16):
        super().__init__()
        self.inner, self.dtype = network(), dtype

    def forward(self, x):
        with torch.autocast("cpu", self.dtype, enabled=self.dtype is not torch.float32):
            return self.inner(x).float()


def test_half_precision_behind_a_float32_output_gives_a_warning():
    with pytest.warns(UserWarning, match="half precision although its output is float32"):
        VAT(1.0, divergence="gaussian")(HalfInside(), rows())
    with pytest.warns(UserWarning, match="half precision although its output is float32"):
        local_distributional_smoothness(HalfInside(), rows(), eps=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VAT(1.0, divergence="gaussian")(HalfInside(torch.float32), rows())
        VAT(1.0)(HalfInside(), rows())  # the default is safe


@pytest.mark.parametrize(("eps", "told"), [(0.5, True), (100.0, False)])
def test_an_r_that_half_precision_rounds_away_gives_a_warning(eps, told):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64).to(torch.bfloat16)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4)).to(torch.bfloat16)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        VAT(eps)(model, x)
    assert any("rounding" in str(w.message) for w in seen) == told


# -------------------------------------------------------------------------------------------------------------- the third argument


@pytest.mark.parametrize("third", [torch.ones(6, 5).long(), torch.ones(6, dtype=torch.bool), torch.ones(6), torch.ones(6, 5, 2).int()])
def test_a_third_argument_that_cannot_be_labels_is_refused(third):
    with pytest.raises(TypeError, match=r"the third argument of vat must be integer labels \(N,\).*Pass a mask as mask="):
        VAT(1.0)(network(), rows(), third)
