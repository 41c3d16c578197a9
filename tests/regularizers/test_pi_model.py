import copy

import torch
from networks import network, rows

from vat import PiModel, Step
from vat.step import Key

KEY = Key(seed=5)


def by_hand(module, x, view):
    p = []
    for stream, inputs in (("network", x), ("other view", view)):
        twin = copy.deepcopy(module)
        with torch.random.fork_rng():
            torch.manual_seed(KEY.own(stream))
            p.append(torch.func.functional_call(twin, dict(module.named_parameters()), (inputs,)).softmax(1))
    return (p[0] - p[1]).square().mean()


def test_without_noise_there_is_nothing_to_agree_on():
    module = network(norm=True, dropout=0.0)
    penalty = PiModel().penalty(Step(module, rows(), key=KEY, live=True))
    penalty.backward()
    assert penalty.item() == 0
    assert all((p.grad == 0).all() for p in module.parameters())
    assert PiModel().penalty(Step(network(norm=True, dropout=0.5).eval(), rows(), key=KEY, live=True)).item() == 0


def test_with_dropout_the_two_passes_draw_other_masks_and_both_take_the_gradient():
    module = network(norm=True, dropout=0.5)
    penalty = PiModel().penalty(Step(module, rows(), key=KEY, live=True))
    wanted = by_hand(module, rows(), rows())
    assert penalty > 1e-3
    torch.testing.assert_close(penalty, wanted)
    for got, g in zip(*(torch.autograd.grad(v, list(module.parameters())) for v in (penalty, wanted)), strict=True):
        torch.testing.assert_close(got, g)


def test_a_second_view_is_what_the_second_pass_sees():
    module, view = network(norm=True, dropout=0.0), rows(seed=2)
    assert PiModel.needs_view
    penalty = PiModel().penalty(Step(module, rows(), key=KEY, live=True, view=view))
    assert penalty > 1e-3
    torch.testing.assert_close(penalty, by_hand(module, rows(), view))
