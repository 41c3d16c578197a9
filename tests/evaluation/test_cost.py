"""Costs compared with known values: calls of a given length, tensors of a given size."""

import pytest
import torch

from vat.evaluation import cost


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the calls advance."""
    now = [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])

    def lasting(*seconds):
        left = iter(seconds * 100)

        def action():
            now[0] += next(left)

        return action

    return lasting


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(cost.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cost, "CALLS", 1)


def test_seconds_are_those_of_one_call(clock, no_gpu):
    assert cost.timed(clock(2.0, 4.0), calls=4) == 3.0


def test_ratios_are_of_calls_timed_one_after_the_other(clock, no_gpu):
    found = cost.in_turn({"base": clock(1.0), "other": clock(9.0, 9.0, 2.0, 5.0, 3.0)}, reference="base", repeats=3)  # two calls warm up
    assert found["other"] == {"seconds": 3.0, "ratio": 3.0, "least": 2.0, "most": 5.0}
    assert found["base"]["ratio"] == 1.0


def test_peak_memory_is_of_tensors_alive_at_once(no_gpu):
    held = torch.zeros(1000)

    def action():
        first = held + 1
        del first
        second = held + 1  # of the same size as the first, which is freed
        return (second[:10], second.view(10, 100))  # views use no extra memory

    assert cost.peak_memory(action, [held]) == 8000
    assert cost.peak_memory(lambda: [held + 1, held + 2], [held]) == 12000
