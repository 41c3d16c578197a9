import pytest
import torch
from networks import network, rows
from torch import nn
from torch.distributions import Categorical, kl_divergence

from vat import VAT, ClassBalance, Step
from vat.regularizers import live
from vat.step import Key

X = rows(40)


@pytest.mark.parametrize("prior", [None, [1, 1, 1], [0.5, 0.25, 0.25], [6.0, 1.0, 2.0]])
def test_penalty_and_gradient_are_those_of_the_divergence_of_the_mean_prediction(prior):
    module = network()
    penalty = ClassBalance(prior=prior, weight=0.5).term(Step(module, X, key=Key(5), live=True))
    wanted_shares = torch.tensor(prior or [1, 1, 1], dtype=torch.float64)
    wanted = 0.5 * kl_divergence(Categorical(probs=module(X).softmax(1).mean(0)), Categorical(probs=wanted_shares))
    torch.testing.assert_close(penalty, wanted)
    for got, g in zip(*(torch.autograd.grad(v, module.parameters()) for v in (penalty, wanted)), strict=True):
        torch.testing.assert_close(got, g)


class Constant(nn.Module):
    """Logits that do not depend on the input."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.logits + 0 * x.sum()


def test_certain_predictions_in_the_right_proportion_cost_nothing():
    logits = 1e4 * torch.eye(4)[[0, 1, 2, 3, 0, 0]]
    penalty = ClassBalance(prior=[3, 1, 1, 1])(Constant(logits.tolist()), torch.ones(6, 2))
    assert penalty.item() == pytest.approx(0, abs=1e-6)


def test_a_class_that_nobody_predicts_gives_a_finite_gradient_towards_it():
    module = Constant([[10.0, 0.0, -1e4], [10.0, 0.0, -40.0]])
    penalty = ClassBalance()(module, torch.ones(2, 2))
    penalty.backward()
    assert penalty.item() == pytest.approx(torch.tensor(3.0).log().item(), rel=1e-3)
    assert module.logits.grad.isfinite().all()
    assert (module.logits.grad[:, 0] > 0).all()
    assert (module.logits.grad[:, 1] < 0).all()


def test_a_class_that_is_ruled_out_costs_nothing_more_than_its_absence():
    logits = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[:, 2] = -torch.inf
    logits.requires_grad_()
    p = logits.detach()[:, :2].softmax(1).mean(0)
    penalty = ClassBalance().penalty(Step(lambda x: logits, torch.zeros(5, 2), module=(), live=True))
    assert penalty.item() == pytest.approx((p * (3 * p).log()).sum().item())
    penalty.backward()
    assert logits.grad.isfinite().all()


def test_a_single_logit_is_two_classes_and_positions_are_pooled():
    assert ClassBalance()(Constant([[3.0], [-3.0]]), torch.ones(2, 2)).item() == pytest.approx(0, abs=1e-6)
    maps = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    flat = maps.movedim(1, -1).reshape(8, 3)
    pooled = [ClassBalance()(Constant(logits.tolist()), torch.ones(len(logits), 2), class_dim=1) for logits in (maps, flat)]
    torch.testing.assert_close(*pooled)


def test_an_empty_batch_costs_nothing():
    penalty = ClassBalance()(network(), X[:0])
    penalty.backward()
    assert penalty.item() == 0


@pytest.mark.parametrize("prior", [[1, 0, 1], [1, -1, 1], [float("nan"), 1, 1], [float("inf"), 1, 1]])
def test_impossible_frequencies_are_refused(prior):
    with pytest.raises(ValueError, match="prior must hold a finite number > 0 for each class, got"):
        ClassBalance(prior=prior)


def test_as_many_frequencies_as_classes_are_needed():
    with pytest.raises(ValueError, match="prior must have one frequency for each of 3 classes, got 2"):
        ClassBalance(prior=[1, 1])(network(), X)


def test_the_weight_fades_and_then_nothing_is_computed():
    balance, module = ClassBalance(weight=2.0, fade_out=4), network()
    weights = []
    for _ in range(6):
        weights.append(balance.current_weight)
        balance.on_optimizer_step_end(module)
    assert weights == [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]
    step = Step(module, X, key=Key(5))  # not live: its clean pass could not carry a gradient
    assert balance.term(step).item() == 0
    assert "clean" not in vars(step)
    assert not live([VAT(1.0), balance])
    assert live([VAT(1.0), ClassBalance()])
