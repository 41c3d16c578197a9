"""Checkpoints made before classes moved still load, resume and evaluate."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from vat.runs import checkpoints, records, training
from vat.runs.renames import renamed

BEFORE = Path(__file__).parent / "files" / "before_the_move.ckpt"
"""10 steps of `model=mlp model.hidden=[8] optimizer=adam_linear data.steps_per_epoch=5`, saved by version 0.1."""
ACCURACY = 0.17587940394878387
"""Its test accuracy as that version printed it."""


def test_only_the_module_of_a_target_is_renamed():
    node = {"data": {"_target_": "vat.data.digits.Digits", "name": "vat.data.digits"}, "regularizers": [{"_target_": "vat.VAT"}]}
    expected = {"data": {"_target_": "vat.data.sets.digits.Digits", "name": "vat.data.digits"}, "regularizers": [{"_target_": "vat.VAT"}]}
    assert renamed(node) == expected
    assert renamed(expected) == expected


def test_the_network_predicts_as_before():
    saved = checkpoints.read_checkpoint(BEFORE)
    network = records.network_of(saved, BEFORE)
    data = records.data_of(saved, BEFORE)
    data.setup()
    with torch.no_grad():
        x, y = data.x[data.split.test], data.y[data.split.test]
    assert json.dumps(saved["record"]["config"]["data"]).count("vat.data.sets.digits.Digits") == 1
    assert (network(x).argmax(1) == y).float().mean().item() == pytest.approx(ACCURACY)


def test_the_run_resumes_without_a_word_of_other_settings(compose, tmp_path):
    quick = ("model=mlp", "model.hidden=[8]", "optimizer=adam_linear", "trainer.max_steps=10", "data.steps_per_epoch=5")
    cfg = compose(*quick, "logger=none", "figures=null", "trainer.enable_progress_bar=false")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        metrics = training.train(cfg, tmp_path / "run", BEFORE)
    assert not [str(w.message) for w in said if "settings" in str(w.message)]
    assert metrics["test/accuracy"] == pytest.approx(ACCURACY)
