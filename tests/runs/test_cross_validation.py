"""`data.folds=k`: the pooled error is that of k runs, which resume, and the job trains on all labels."""

import json

import numpy as np
import pytest
import torch

from vat.evaluation.few_examples import wilson
from vat.runs import cross_validation, report
from vat.runs.records import read_checkpoint


@pytest.fixture
def overrides(tmp_path):
    path = tmp_path / "table.npz"
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    np.savez(path, x=(np.eye(2, 4)[y] + rng.normal(size=(60, 4))).astype(np.float32), y=np.where(np.arange(60) < 31, y, -1))
    return ("data=arrays", f"data.train={path}", "model=mlp", "model.hidden=[4]", "trainer.max_steps=8")


def test_the_pooled_error_is_that_of_all_folds(job, overrides):
    run = job(*overrides, "data.folds=3", "vat.eps=1")
    one_by_one = [job(*overrides, "data.folds=3", "vat.eps=1", f"data.fold={fold}", name=f"by-hand-{fold}") for fold in range(3)]
    counts = [read_checkpoint(each.checkpoint)["record"]["parts"]["validation"] for each in one_by_one]
    right = sum(round(each.metrics["val/accuracy"] * n) for each, n in zip(one_by_one, counts, strict=True))
    assert sum(counts) == run.metrics["val/examples"] == 25  # all but the test part
    assert run.metrics["val/accuracy"] == pytest.approx(right / 25)
    record = read_checkpoint(run.checkpoint)["record"]
    assert (record["parts"]["labeled"], record["parts"]["validation"]) == (25, 0)
    assert json.loads((run.folder / "metrics.json").read_text())["val/folds"] == 3
    assert "val accuracy, 3 folds" in (run.folder / "index.html").read_text()


def test_folds_that_are_done_are_not_done_again(job, overrides, monkeypatch):
    from vat.runs import training

    first = job(*overrides, "data.folds=2", name="first")
    trained, real = [], training.train

    def counted(cfg, folder, start=None):
        trained.append(folder.name)
        return real(cfg, folder, start)

    monkeypatch.setattr(training, "train", counted)
    (done,) = cross_validation.FOLDER.glob("*/fold-1/metrics.json")
    done.unlink()
    second = job(*overrides, "data.folds=2", name="second")
    assert trained == ["second", "fold-1"]
    assert first.metrics["val/accuracy"] == second.metrics["val/accuracy"]
    alone = job(*overrides, "data.folds=2", "data.validation_share=0.3", name="alone")  # the share is not used with folds
    states = [read_checkpoint(run.checkpoint)["state_dict"] for run in (first, second, alone)]
    weights = [name for name in states[0] if name.startswith("network.")]
    assert all(torch.equal(states[0][name], other[name]) for name in weights for other in states[1:])


def test_the_error_is_said_with_its_count_and_interval(job, overrides, monkeypatch, capsys):
    monkeypatch.setattr(report.console, "width", 1000)
    monkeypatch.setattr(report.console, "quiet", False)
    run = job(*overrides, "data.folds=3")
    wrong = round(25 * (1 - run.metrics["val/accuracy"]))
    low, high = wilson(wrong, 25)
    said = capsys.readouterr().out
    error = f"validation error over 3 folds: {4 * wrong:.2f} % ({wrong} of 25; 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
    assert said.index("3 runs, each with another fold") < said.index(error) < said.index("Result")
    assert said.count("Result") == 1  # runs of folds print nothing of their own


def test_pilot_runs_and_folds_go_together(job, overrides, monkeypatch):
    from vat.evaluation.choosing import Choice
    from vat.runs import pilots

    monkeypatch.setattr(pilots, "choose", lambda found: Choice(2.0, tuple(found), 1.0))
    monkeypatch.setattr(pilots, "tell", lambda *_: None)
    run = job(*overrides, "data.folds=2", "choose_eps=true", "vat.eps=1")
    assert len(list(pilots.FOLDER.glob("*/eps-*"))) == 12
    folds = sorted(cross_validation.FOLDER.glob("*/fold-*/checkpoints/last.ckpt"))
    assert len(folds) == 2
    for path in (*folds, run.checkpoint):
        record = read_checkpoint(path)["record"]
        assert record["config"]["vat"]["eps"] == 2.0
        assert record["parts"]["test"] == 6


def test_a_sweep_compares_pooled_errors(main, overrides, tmp_path):
    main("-m", *overrides, "data.folds=2", "data.validation_share=0", "vat.eps=0.5,1")
    found = [json.loads(path.read_text()) for path in tmp_path.glob("multirun/*/metrics.json")]
    assert [metrics["val/examples"] for metrics in found] == [25, 25]


def test_a_fold_without_validation_examples_does_not_count():
    found = cross_validation.pool(
        {
            "a": {"val/accuracy": 1.0, "val/cross_entropy": 1.0, "val/examples": 3},
            "b": {"val/accuracy": 0.0, "val/cross_entropy": 5.0, "val/examples": 1},
            "c": {"seconds": 1.0},
        }
    )
    assert found == {"val/accuracy": 0.75, "val/cross_entropy": 2.0, "val/examples": 4, "val/folds": 3}
    with pytest.raises(ValueError, match="none can be held out"):
        cross_validation.pool({"c": {"seconds": 1.0}})


def test_several_devices_are_refused(job, overrides):
    with pytest.raises(ValueError, match=r"data\.folds=2 runs on one device"):
        job(*overrides, "data.folds=2", "trainer.devices=2")
