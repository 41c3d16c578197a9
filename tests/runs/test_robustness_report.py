"""The tables of the report on robustness."""

import pytest

from vat.evaluation.few_examples import wilson
from vat.runs import report
from vat.runs.robustness_report import show


def found(number):
    clean = {
        "accuracy": 0.9,
        "calibration_error": 0.1,
        "cross_entropy": 0.3,
        "lds": 0.2,
        "margin": None,
        "distance": None,
        "lipschitz": None,
    }
    robust = {"l2": {"eps": [0.5, 1.0, 2.0, 4.0], "accuracy": {"apgd": [0.9, 0.8, 0.5, 0.0], "worst": [0.9, 0.7, 0.5, 0.0]}}}
    corruptions = {"noise": [0.9, 0.8, 0.7, 0.6, 0.5]}
    return {"examples": number, "of": number, "unit": "pixels", "on_the_rest": [], "warnings": {}} | {
        "clean": clean,
        "robust": robust,
        "corruptions": corruptions,
    }


@pytest.fixture
def printed(capsys, monkeypatch, tmp_path):
    def shown(number):
        monkeypatch.setattr(report.console, "width", 80)
        monkeypatch.setattr(report.console, "quiet", False)
        show(found(number), tmp_path)
        return capsys.readouterr().out

    return shown


def test_accuracies_of_few_examples_have_their_interval(printed):
    said = printed(40)
    for right in (36, 32, 28, 20, 0):
        low, high = wilson(right, 40)
        assert f"{100 * low:.0f} to {100 * high:.0f} %" in said
    assert "36 of 40" in said
    assert "below each its 95 %" in said
    assert max(map(len, said.splitlines()[:-1])) <= 80


def test_accuracies_of_many_examples_have_none(printed):
    assert " to " not in printed(300)
