import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vat import Adversarial, Step
from vat.step import Key

KEY = Key(seed=5)
N, D, C, EPS = 6, 5, 3, 0.7


def linear_and_batch(outputs=C):
    torch.manual_seed(0)
    return nn.Linear(D, outputs).double(), torch.randn(N, D, dtype=torch.float64), torch.arange(N) % max(2, outputs)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_penalty_of_a_linear_model_is_the_cross_entropy_at_the_closed_form_perturbation(norm):
    module, x, y = linear_and_batch()
    total = 0.0
    for xi, yi in zip(x, y, strict=True):
        residual = module(xi).softmax(0) - F.one_hot(yi, C)  # the gradient in the logits
        g = module.weight.T @ residual
        r = EPS * (g / g.norm() if norm == "l2" else g.sign())
        total = total + F.cross_entropy(module(xi + r.detach())[None], yi[None])
    penalty = Adversarial(EPS, norm=norm).penalty(Step(module, x, y, key=KEY))
    torch.testing.assert_close(penalty, total / N)
    for got, wanted in zip(*(torch.autograd.grad(v, module.parameters()) for v in (penalty, total / N)), strict=True):
        torch.testing.assert_close(got, wanted)  # r is a constant in both computations


def test_penalty_of_a_single_logit_raises_its_own_cross_entropy():
    module, x, y = linear_and_batch(outputs=1)
    sign = 1 - 2 * y[:, None].double()  # towards the other class
    wanted = F.binary_cross_entropy_with_logits((module(x) + sign * EPS * module.weight.norm()).flatten(), y.double())
    torch.testing.assert_close(Adversarial(EPS).penalty(Step(module, x, y, key=KEY)), wanted)


def test_penalty_without_radius_is_the_plain_cross_entropy():
    module, x, y = linear_and_batch()
    torch.testing.assert_close(Adversarial(0.0)(module, x, y), F.cross_entropy(module(x), y))


def test_labels_are_required():
    module, x, _ = linear_and_batch()
    assert Adversarial.needs_labels
    with pytest.raises(ValueError, match="needs labels"):
        Adversarial(EPS)(module, x)


def test_a_saturated_example_still_gets_a_finite_perturbation():
    module, x, y = linear_and_batch()
    with torch.no_grad():
        module.weight.zero_()
    penalty = Adversarial(EPS)(module, x, y)
    penalty.backward()
    torch.testing.assert_close(penalty, F.cross_entropy(module(x), y))
    assert module.weight.grad.isfinite().all()


def test_an_unknown_norm_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="unknown norm 'l1': choose one of l2, linf"):
        Adversarial(EPS, norm="l1")


def test_confident_examples_keep_their_direction_in_float16():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 16), nn.Tanh(), nn.Linear(16, 3))
    with torch.no_grad():
        module[2].bias[0] += 12  # cross entropies of 6e-6 and their gradients, over 64 examples
    x, y = torch.randn(64, 40), torch.zeros(64, dtype=torch.long)
    expected = Adversarial(8.0)(module, x, y)
    assert Adversarial(8.0)(module.half(), x.half(), y).item() == pytest.approx(expected.item(), rel=0.02)
