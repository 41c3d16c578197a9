import copy

import networks
import pytest
import torch
from torch import nn

from vat import Step
from vat.functional import Categorical, entropy
from vat.regularizers import PublishedVAT
from vat.step import Key

KEY = Key(seed=5)
KL = Categorical()
EPS = 0.7


def by_hand(*, xi, reverse_kl=False, adversarial_entropy=0.0, num_power_iterations=1):
    """Three ordinary calls of the network, each with its own seed for the noise."""
    module, x = networks.network(5, 12, 4, norm=True, dropout=0.5), networks.rows(8)

    def call(x, number):
        torch.manual_seed(KEY.own(f"pass {number}"))
        return copy.deepcopy(module)(x)

    def kl(p, q):
        return KL(q, p) if reverse_kl else KL(p, q)

    clean = call(x, 0).detach()
    d = Step(module, x, key=KEY).normal("direction")
    for number in range(num_power_iterations):
        r = (xi * d / d.norm(dim=1, keepdim=True)).requires_grad_()
        (d,) = torch.autograd.grad(kl(clean, call(x + r, 1 + number)).sum(), r)
    perturbed = call(x + EPS * d / d.norm(dim=1, keepdim=True), 1 + num_power_iterations)
    return kl(clean, perturbed).mean() + adversarial_entropy * entropy(perturbed).mean()


@pytest.mark.parametrize("choice", [{}, {"reverse_kl": True}, {"adversarial_entropy": 0.5}, {"num_power_iterations": 3}], ids=str)
@pytest.mark.parametrize("xi", [1e-3, 10.0])
def test_penalty_is_that_of_ordinary_calls(xi, choice):
    ours = PublishedVAT(EPS, xi=xi, **choice).penalty(Step(networks.network(5, 12, 4, norm=True, dropout=0.5), networks.rows(8), key=KEY))
    torch.testing.assert_close(ours, by_hand(xi=xi, **choice))


def test_noise_that_differs_between_passes_is_penalised_without_any_perturbation():
    assert PublishedVAT(0.0).penalty(Step(networks.network(5, 12, 4, norm=True, dropout=0.5), networks.rows(8), key=KEY)) > 1e-2
    quiet = networks.network(5, 12, 4, norm=True, dropout=0.5)
    quiet[3] = nn.Identity()
    assert PublishedVAT(0.0).penalty(Step(quiet, networks.rows(8), key=KEY)).abs() < 1e-12


@pytest.mark.parametrize(("moves", "passes"), [(False, 0), (True, 3)])
def test_running_statistics_move_in_every_pass_or_in_none(moves, passes):
    module = networks.network(5, 12, 4, norm=True, dropout=0.5)
    before = module[1].running_mean.clone()
    PublishedVAT(EPS, move_statistics=moves)(module, networks.rows(8)).backward()
    assert module[1].num_batches_tracked == passes
    assert torch.equal(module[1].running_mean, before) != moves
