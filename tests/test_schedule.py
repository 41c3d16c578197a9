"""TPAMI's decay and the one with warmup follow their descriptions, and a resumed schedule follows an uninterrupted one."""

import numpy as np
import pytest
import torch

from vat.schedule import LinearDecay, WarmedLinearDecay


def adam(lr=0.001, beta1=0.9):
    return torch.optim.Adam([torch.nn.Parameter(torch.ones(3))], lr=lr, betas=(beta1, 0.999), fused=True)


def run(optimizer, schedule, steps):
    """(lr, β₁) that each step uses."""
    seen = []
    for _ in range(steps):
        group = optimizer.param_groups[0]
        seen.append((group["lr"], group["betas"][0]))
        group["params"][0].grad = torch.ones(3)
        optimizer.step()
        schedule.step()
    return seen


def test_the_rate_and_beta1_are_constant_and_then_fall_linearly():
    """SVHN: 48,000 updates, with the decay in the last 16,000; here a thousandth of these."""
    optimizer = adam()
    seen = run(optimizer, LinearDecay(optimizer, 48, hold=2 / 3, final_beta1=0.5), 48)
    rates, beta1s = map(np.array, zip(*seen, strict=True))
    assert rates[:33] == pytest.approx(0.001)
    assert beta1s[:33] == pytest.approx(0.9)
    assert seen[40] == pytest.approx((0.0005, 0.7))
    assert seen[47] == pytest.approx((0.001 / 16, 0.5 + 0.4 / 16))
    assert np.diff(rates[32:]) == pytest.approx(-0.001 / 16)


def test_the_end_is_zero_and_stays_there():
    optimizer = adam()
    run(optimizer, LinearDecay(optimizer, 10, final_beta1=0.5), 15)
    assert optimizer.param_groups[0]["lr"] == 0.0
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.999)


def test_every_group_of_parameters_falls_from_its_own_values():
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = torch.optim.Adam([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.01, "betas": (0.7, 0.99)}], lr=0.001)
    run(optimizer, LinearDecay(optimizer, 10, final_beta1=0.5), 5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0005, 0.005])
    assert [group["betas"] for group in optimizer.param_groups] == [pytest.approx((0.7, 0.999)), pytest.approx((0.6, 0.99))]


def test_without_a_final_beta1_any_optimizer_works():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=1.0)
    schedule = LinearDecay(optimizer, 4)
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == [0.75]


@pytest.mark.parametrize("cut", [1, 5, 8])
def test_a_schedule_resumes_where_it_was_saved(cut):
    whole = adam()
    expected = run(whole, LinearDecay(whole, 10, hold=0.5, final_beta1=0.5), 10)
    first = adam()
    schedule = LinearDecay(first, 10, hold=0.5, final_beta1=0.5)
    run(first, schedule, cut)
    second = adam()
    resumed = LinearDecay(second, 10, hold=0.5, final_beta1=0.5)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert run(second, resumed, 10 - cut) == expected[cut:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps must be >= 1, got 0"),
        ({"total_steps": 10, "hold": 1.0}, "hold is a share of the run and must be >= 0 and < 1, got 1.0"),
        ({"total_steps": 10, "hold": float("nan")}, "hold is a share of the run and must be"),
        ({"total_steps": 10, "final_beta1": 1.5}, "final_beta1 must be >= 0 and < 1, got 1.5"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LinearDecay(adam(), **options)


def test_an_optimizer_without_betas_is_refused():
    with pytest.raises(ValueError, match=r"final_beta1=0\.5 needs an optimizer with betas such as Adam, got SGD"):
        LinearDecay(torch.optim.SGD([torch.nn.Parameter(torch.ones(3))]), 10, final_beta1=0.5)


def test_the_warmed_rate_rises_and_falls_in_straight_lines():
    optimizer = adam(lr=1.0)
    rates = [rate for rate, _ in run(optimizer, WarmedLinearDecay(optimizer, 20, warmup=0.2), 20)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, *((20 - step) / 16 for step in range(4, 20))])
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_without_warmup_it_is_only_the_decay():
    one, other = adam(), adam()
    assert run(one, WarmedLinearDecay(one, 10, warmup=0), 10) == run(other, LinearDecay(other, 10), 10)


@pytest.mark.parametrize("cut", [1, 3, 8])
def test_the_warmed_rate_resumes_where_it_was_saved(cut):
    whole, first, second = adam(), adam(), adam()
    expected = run(whole, WarmedLinearDecay(whole, 10, warmup=0.5), 10)
    schedule = WarmedLinearDecay(first, 10, warmup=0.5)
    run(first, schedule, cut)
    resumed = WarmedLinearDecay(second, 10, warmup=0.5)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert run(second, resumed, 10 - cut) == expected[cut:]


@pytest.mark.parametrize("warmup", [-0.1, 1.0, float("nan")])
def test_a_warmup_out_of_range_is_refused(warmup):
    with pytest.raises(ValueError, match="warmup is a share of the run and must be >= 0 and < 1"):
        WarmedLinearDecay(adam(), 10, warmup=warmup)
