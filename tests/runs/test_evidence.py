"""Differences are paired by seed, few examples make them unsure, and ties are broken without labels."""

import math

import pytest

from vat.runs import evidence


def job(eps, seed, accuracy, number=20, kl=0.001, share=0.9):
    metrics = {"val/accuracy": accuracy, "val/examples": number, "pool/kl_random": kl, "pool/smallest_share": share}
    return {"vat.eps": str(eps), "seed": str(seed), "model": "mlp"}, metrics


def test_settings_are_grouped_without_their_seed_and_by_what_was_swept():
    found = evidence.groups([job(1, 0, 0.8), job(2, 0, 0.9), job(1, 1, 0.7), ({"vat.eps": "4"}, None)])
    assert [(group.name, len(group.of_seed)) for group in found] == [("vat.eps=2", 1), ("vat.eps=1", 2)]
    assert found[1].error == pytest.approx(0.25)


def test_a_difference_is_paired_by_seed():
    # Seeds differ by 30 points, settings by 10 for each seed. With very many examples the difference is certain.
    found = evidence.groups([job(eps, seed, 0.9 - 0.3 * seed - 0.1 * eps, number=10**9) for eps in (0, 1) for seed in (0, 1, 2)])
    value, error = evidence.difference(found[1], found[0])
    assert value == pytest.approx(0.1)
    assert error == pytest.approx(0, abs=1e-4)
    uneven = evidence.groups([job(0, 0, 0.9, 10**9), job(0, 1, 0.9, 10**9), job(1, 0, 0.8, 10**9), job(1, 1, 0.6, 10**9)])
    assert evidence.difference(uneven[1], uneven[0]) == pytest.approx((0.2, 0.1))  # 0.1 and 0.3: 0.2 ± √0.02 / √2


def test_seeds_do_not_make_few_examples_many():
    found = evidence.groups([job(eps, seed, 0.9 - 0.1 * eps, number=8) for eps in (0, 1) for seed in range(50)])
    assert evidence.difference(found[1], found[0])[1] == pytest.approx(math.sqrt((0.1 + 0.2) / 8))
    perfect = evidence.groups([job(eps, 0, 1.0, number=2) for eps in (0, 1)])
    assert evidence.difference(perfect[1], perfect[0])[1] == pytest.approx(0.5)


def test_ties_are_broken_by_unlabelled_examples():
    found = evidence.groups(
        [job(0.5, 0, 0.95, kl=0.0002), job(1, 0, 0.9, kl=0.002), job(2, 0, 0.9, kl=0.02), job(4, 0, 1.0, kl=0.3), job(8, 0, 0.1, kl=0.9)]
    )
    assert [group.name for group in evidence.tied(found)] == ["vat.eps=1", "vat.eps=0.5", "vat.eps=4", "vat.eps=2"]
    (said,) = evidence.words(found)
    assert said.startswith("validation of 20 examples cannot tell 4 of 5 settings from the best. Unlabelled examples prefer vat.eps=1,")


def test_a_setting_that_leaves_a_class_out_is_not_preferred():
    found = evidence.groups([job(1, 0, 0.9, kl=0.001), job(2, 0, 0.9, kl=0.002, share=0.1)])
    assert evidence.tied(found)[0].name == "vat.eps=1"


def test_nothing_is_said_if_validation_can_tell():
    assert evidence.words(evidence.groups([job(1, 0, 0.9, number=5000), job(2, 0, 0.8, number=5000)])) == []
    assert evidence.words(evidence.groups([job(1, 0, 0.9)])) == []
    assert evidence.words([]) == []


def test_without_a_radius_there_is_no_preference():
    def at(rate, accuracy):
        return {"optimizer.lr": rate}, {"val/accuracy": accuracy, "val/examples": 20, "pool/kl_random": 0.001, "pool/smallest_share": 1.0}

    (said,) = evidence.words(evidence.groups([at("0.1", 0.9), at("0.2", 0.85)]))
    assert said == "validation of 20 examples cannot tell 2 of 2 settings from the best. Compare more seeds, or label more."


def test_the_table_shows_counts_only_of_few_examples():
    few, many = (evidence.rows(evidence.groups([job(1, 0, 0.9, number=n), job(2, 0, 0.8, number=n)])) for n in (10, 1000))
    assert few[0][1] == "10.00 of 10, 2 to 40 %"
    assert few[0][2] == "–"
    assert few[1][2] == "+10.00 ± 17.32"
    assert many[0][1] == "10.00"
    old = evidence.rows(evidence.groups([({"vat.eps": "1"}, {"val/accuracy": 0.9}), ({"vat.eps": "2"}, {"val/accuracy": 0.8})]))
    assert old[0] == ["vat.eps=1", "10.00", "–", "–", "–"]
