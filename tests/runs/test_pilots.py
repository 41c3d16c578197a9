"""`choose_eps=true`: a run prints the cost, trains short runs that resume, writes a table and a picture, and then trains."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from vat.evaluation.choosing import Choice, Pilot
from vat.runs import pilots, report
from vat.runs.records import read_checkpoint


def own(path, number=80, labeled=20):
    rng = np.random.default_rng(0)
    y = np.arange(number) % 2
    x = 2 * np.eye(2, 4)[y] + rng.normal(size=(number, 4))
    y[labeled:] = -1
    np.savez(path, x=x.astype(np.float32), y=y)
    return ("data=arrays", f"data.train={path}", "model=mlp", "model.hidden=[4]", "trainer.max_steps=8", "choose_eps=true")


@pytest.fixture
def overrides(tmp_path):
    return own(tmp_path / "table.npz")


def test_pilot_runs_are_short_and_share_the_labels_of_the_run(compose, overrides):
    cfg = compose(*overrides, "regularizer=vat", "vat.eps=1", "vat.ramp_up=40", "seed=5", "trainer.max_steps=800")
    found = list(pilots.jobs(cfg))
    assert [eps for eps, _, _ in found] == [0, 0, 0.25, 0.25, 0.5, 0.5, 1, 1, 2, 2, 4, 4]
    assert len({name for _, name, _ in found}) == len(found)
    for eps, _, job in found:
        assert (job.trainer.max_steps, job.scheduler.T_max, job.data.seed) == (200, 200, 5)
        assert job.seed in (6, 7)
        assert [node.eps for node in job.regularizers] == ([eps] if eps else [])
        assert job.vat.ramp_up == 10
    assert cfg.trainer.max_steps == 800
    assert cfg.vat.eps == 1


def test_pilot_runs_of_the_recipe_move_both_radii_and_shorten_shares_once(compose, overrides):
    cfg = compose(*overrides, "vat.eps=1", "trainer.max_steps=800")
    for eps, _, job in pilots.jobs(cfg):
        if eps:
            assert (job.vat.eps, job.random_perturbation.eps) == (eps, 4 * eps)
            assert job.class_balance.fade_out == 100  # half of 200 steps


def test_a_radius_is_chosen_said_and_trained_with(job, overrides, monkeypatch, capsys):
    from vat.runs import training

    real = training.train

    def loud(cfg, folder, start=None):
        report.console.quiet = report.console.quiet and folder.name != "job"
        return real(cfg, folder, start)

    monkeypatch.setattr(report.console, "width", 1000)
    monkeypatch.setattr(training, "train", loud)
    monkeypatch.setattr(pilots, "choose", lambda found: Choice(sorted(p.eps for p in found)[2], tuple(PILOTS), 1.0))
    run = job(*overrides, "vat.eps=1")
    said = capsys.readouterr().out
    assert "12 pilot runs of 8 steps, 12 times the steps of the training itself" in said
    assert said.index("12 pilot runs") < said.index("rarest class") < said.index("Result")
    assert said.count("Result") == 1  # pilot runs print nothing
    cfg = OmegaConf.load(run.folder / "config.yaml")
    assert cfg.vat.eps == 0.5
    assert read_checkpoint(run.checkpoint)["record"]["config"]["regularizers"][0]["eps"] == 0.5
    assert run.checkpoint.exists()
    assert (run.folder / "pilot.png").stat().st_size > 1000
    assert json.loads((run.folder / "pilot.json").read_text())["eps"] == 0.5


def test_if_vat_does_not_help_the_run_trains_without(job, overrides, monkeypatch):
    monkeypatch.setattr(pilots, "FACTORS", (1.0,))
    monkeypatch.setattr(pilots, "choose", lambda found: Choice(0.0, tuple(found), 1.0))
    run = job(*overrides)
    assert OmegaConf.load(run.folder / "config.yaml").regularizers == []
    assert "VAT does not help here" in json.loads((run.folder / "pilot.json").read_text())["words"][0]


def test_pilot_runs_that_are_done_are_not_done_again(job, overrides, monkeypatch):
    from vat.runs import training

    monkeypatch.setattr(pilots, "FACTORS", (1.0,))
    first = job(*overrides, name="first")
    trained, real = [], training.train

    def counted(cfg, folder, start=None):
        trained.append(folder.name)
        return real(cfg, folder, start)

    monkeypatch.setattr(training, "train", counted)
    (done,) = {path.parent for path in pilots.FOLDER.glob("*/*/metrics.json") if path.parent.name.startswith("eps-0-0")}
    (done / "metrics.json").unlink()
    cfg_folder = done.parent.parent
    assert cfg_folder == pilots.FOLDER
    second = job(*overrides, name="second")
    assert trained == ["second", "eps-0-0"]
    states = [read_checkpoint(run.checkpoint)["state_dict"] for run in (first, second)]
    weights = [name for name in states[0] if name.startswith("network.")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in weights)  # the run does not depend on who ran the pilots


def test_disagreement_tells_whether_vat_helps():
    def helps(wrong):
        first, second = torch.zeros(400, dtype=torch.int64), (torch.arange(400) < wrong).long()
        chosen = Choice(1.0, (Pilot(1.0, torch.stack([first, second]), torch.zeros(400), 2),), 1.0).rows()[0]
        return pilots._helps({"disagreement": 0.25, "standard_error": 0.02}, chosen)

    assert helps(20).endswith("VAT helps")
    assert "cannot tell whether" in helps(100)
    assert "VAT may do harm here" in helps(200)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("regularizer=none",), "add regularizer=vat"),
        (("vat.eps=0",), "add regularizer=vat"),
        (("trainer.devices=2",), "one device"),
    ],
)
def test_a_job_that_pilots_cannot_choose_for_is_refused(job, overrides, more, words):
    with pytest.raises(ValueError, match=words):
        job(*overrides, *more)


def test_classes_that_touch_are_trained_without_vat_and_pilots(job, tmp_path):
    path = tmp_path / "noise.npz"
    rng = np.random.default_rng(0)
    y = np.where(np.arange(150) < 100, rng.integers(2, size=150), -1)
    np.savez(path, x=rng.normal(size=(150, 20)).astype(np.float32), y=y)
    run = job("data=arrays", f"data.train={path}", "model=mlp", "model.hidden=[4]", "choose_eps=true")
    assert OmegaConf.load(run.folder / "config.yaml").regularizers == []
    assert not pilots.FOLDER.exists()


def test_without_unlabelled_examples_there_is_nothing_to_compare(job, tmp_path):
    with pytest.raises(ValueError, match="there are none"):
        job(*own(tmp_path / "all.npz", labeled=80))


PILOTS = [
    Pilot(eps, torch.stack([torch.arange(40) % 2, (torch.arange(40) + (torch.arange(40) < number)) % 2]), torch.full((40,), kl), 2)
    for eps, number, kl in ((0.0, 20, 0.0), (0.25, 10, 0.001), (0.5, 4, 0.002), (1.0, 6, 0.004), (2.0, 2, 0.5), (4.0, 2, 0.9))
]
