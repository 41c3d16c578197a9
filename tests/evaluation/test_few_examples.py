"""Intervals and tails equal scipy's. There is a warning for a class that is never predicted, and none for what chance explains."""

import pytest
import torch
from scipy.stats import binom, binomtest

from vat.evaluation.few_examples import binomial_tail, counted, interval, left_out, warning_of_few, wilson


@pytest.mark.parametrize("number", [1, 2, 8, 50, 299, 10_000])
def test_the_interval_is_wilsons(number):
    for right in {0, 1, number // 2, number - 1, number}:
        expected = binomtest(right, number).proportion_ci(0.95, method="wilson")
        assert wilson(right, number) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(("right", "number"), [(0, 0), (-1, 3), (4, 3)])
def test_impossible_counts_are_refused(right, number):
    with pytest.raises(ValueError, match="0 <= right <= number"):
        wilson(right, number)


def test_few_examples_are_shown_with_their_count():
    assert interval(7, 8) == "53 to 98 %"
    assert counted(7 / 8, 8) == "7 of 8; 95 % interval 53 to 98 %"
    assert counted(float(torch.tensor(7 / 8, dtype=torch.float32)), 8) == counted(7 / 8, 8)
    assert counted(1.0, 2) == "2 of 2; 95 % interval 34 to 100 %"
    assert counted(0.9, 300) == counted(0.9, None) == ""


def test_a_small_validation_part_is_explained():
    assert warning_of_few(50) is None
    assert warning_of_few(0) is None
    said = warning_of_few(8)
    assert said is not None
    assert said.startswith("validation has 8 examples: one of them is 12.5 points of accuracy, and 7 of 8 right would mean 53 to 98 %")


@pytest.mark.parametrize(
    ("count", "number", "share"), [(0, 100, 0.1), (3, 100, 0.1), (40, 100, 0.1), (10, 100, 0.1), (999, 1000, 0.9), (0, 7, 0.5)]
)
def test_the_tail_is_the_binomials(count, number, share):
    below = count <= share * number
    expected = binom.cdf(count, number, share) if below else binom.sf(count - 1, number, share)
    assert binomial_tail(count, number, share) == pytest.approx(expected, rel=1e-9)


NAMES = [f"class {c}" for c in range(10)]
LABELS = torch.full((10,), 5)


def said(*predicted):
    return left_out(torch.tensor(predicted), LABELS, NAMES, where="unlabelled examples")


def test_a_class_that_is_never_predicted_is_named():
    (sentence,) = said(100, 100, 100, 100, 0, 170, 120, 110, 100, 100)
    assert sentence.startswith("unlabelled examples: almost never predicted: class 4 0.0 % (labels 10.0 %).")
    (sentence,) = said(100, 100, 100, 100, 1, 170, 120, 110, 100, 99)
    assert "class 4 0.1 %" in sentence
    assert "class 5" not in sentence


def test_proportions_far_from_the_labels_are_named():
    (sentence,) = said(300, 80, 80, 80, 80, 80, 80, 80, 80, 60)
    assert sentence.startswith("unlabelled examples: predictions are far from the labels' proportions: class 0 30.0 % (labels 10.0 %).")


def test_what_chance_explains_gives_no_warning():
    assert said(0, 2, 1, 3, 0, 1, 2, 1, 0, 0) == []  # among 10 examples a class of 10 % is often missing
    assert said(90, 110, 130, 80, 95, 105, 100, 100, 90, 100) == []
    assert left_out(torch.tensor([5, 5, 0]), torch.tensor([5, 5, 0]), ["a", "b", "c"], where="") == []


def test_a_class_without_labels_is_not_judged():
    assert left_out(torch.tensor([500, 300, 200]), torch.tensor([5, 5, 0]), ["a", "b", "c"], where="") == []
