import pytest
import torch
from networks import network, rows

from vat import VAT, RandomPerturbation, Step
from vat.norms import NORMS
from vat.step import Key

KEY = Key(seed=5)


def network_and_rows():
    return network(), rows()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_it_is_vat_along_a_random_direction_under_its_own_name(norm):
    module, x = network_and_rows()
    report = {}
    penalty = RandomPerturbation(0.5, norm=norm, weight=2.0).term(Step(module, x, key=KEY, report=report))
    torch.testing.assert_close(penalty, 2 * VAT(0.5, norm=norm, direction="random").penalty(Step(module, x, key=KEY)))
    r = RandomPerturbation(0.5, norm=norm).virtual_adversarial_perturbation(Step(module, x, key=KEY))
    torch.testing.assert_close(r, 0.5 * NORMS[norm].sample(Step(module, x, key=KEY).normal("direction")))
    assert set(report) >= {f"random_perturbation/{n}" for n in ("lds", "kl_random", "kl_at_zero", "kl_ascent", "flip_rate", "margin")}


def test_for_small_eps_it_is_half_the_quadratic_form_of_the_fisher_matrix():
    module, x = network_and_rows()
    eps = 1e-4
    step = Step(module, x, key=KEY)
    r = RandomPerturbation(eps).virtual_adversarial_perturbation(step)
    wanted = []
    for row, ri in zip(x, r, strict=True):
        J = torch.autograd.functional.jacobian(module, row)
        p = module(row).softmax(0)
        u = J @ ri
        wanted.append(((p * u.square()).sum() - (p * u).sum().square()) / 2)
    # relative error: eps from the third derivative, 1e-16 / eps² from rounding
    torch.testing.assert_close(RandomPerturbation(eps).penalty(Step(module, x, key=KEY)), torch.stack(wanted).mean(), rtol=1e-3, atol=0)
