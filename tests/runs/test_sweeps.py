"""Sweeps: their summary, and jobs that fail, resume, and run in separate processes."""

import csv
import json
import math
import os
import signal
import sys
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from pytorch_lightning.utilities.exceptions import SIGTERMException

from vat.runs import folders, report, sweep_summary, sweeps

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "src" / "train.py"
SMALL = ["data=moons", "model=mlp", "model.hidden=[8]", "model.batch_norm=false", "trainer.max_steps=4", "data.steps_per_epoch=4"]


def made(settings, val, test=None, **more):
    metrics = None
    if val is not None:
        metrics = {"val/accuracy": 1 - val / 100, "seconds": 2.0} | (
            {} if test is None else {"test/accuracy": 1 - test / 100, "test/lds": 0.5}
        )
    return sweep_summary.Job(settings, Path("multirun/x"), metrics, more.get("problem"), more.get("commit"))


def job(eps, seed, val, test=None, **more):
    return made({"data": "digits", "vat.eps": eps, "seed": seed}, val, test, **more)


# --------------------------------------------------------------------------------------------------------------- summary


def test_settings_differ_in_more_than_the_seed_and_are_sorted_by_validation():
    jobs = [job("1", "0", 8, 2), job("2", "0", 4, 9), job("1", "1", 6, 1), job("2", "1", 7, 8), job("4", "0", None), job("4", "1", 9, 0)]
    found = sweep_summary.settings_of(jobs)
    assert [s.values for s in found] == [{"vat.eps": "2"}, {"vat.eps": "1"}, {"vat.eps": "4"}]  # 5.5, 7, 9; by test error 4, 1, 2
    assert [(s.num_jobs, len(s.val)) for s in found] == [(2, 2), (2, 2), (2, 1)]
    assert found[0].val == pytest.approx([4, 7])
    assert found[0].test == pytest.approx([9, 8])


def test_settings_of_several_grids_keep_to_their_own_keys():
    jobs = [
        made({"regularizer": "none", "seed": "0"}, 9),
        made({"regularizer": "vat", "vat.eps": "1", "seed": "0"}, 5),
        made({"regularizer": "vat", "vat.eps": "2", "seed": "0"}, None),
    ]
    found = sweep_summary.settings_of(jobs)
    assert [s.values for s in found] == [
        {"regularizer": "vat", "vat.eps": "1"},
        {"regularizer": "none"},
        {"regularizer": "vat", "vat.eps": "2"},
    ]


def test_a_summary_is_a_csv_a_page_and_a_table(tmp_path, capsys, monkeypatch):
    errors = {"1": ([8, 6, 7], [8.5, 6.5, 7.5]), "2": ([4, 7, 4], [4, 8, 3])}
    jobs = [job(eps, str(i), v, t) for eps, (val, test) in errors.items() for i, (v, t) in enumerate(zip(val, test, strict=True))]
    jobs.append(job("4", "0", None, problem="failed: eps <too> large"))
    monkeypatch.setattr(report.console, "quiet", False)
    sweep_summary.summarise(jobs, tmp_path, said="python src/train.py -m vat.eps=1,2,4")
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["vat.eps"] for row in rows] == ["2", "1", "4"]
    for row in rows[:2]:
        val, test = errors[row["vat.eps"]]
        for name, values in (("val", val), ("test", test)):
            assert float(row[f"{name}_error_percent_mean"]) == pytest.approx(mean(values))
            assert float(row[f"{name}_error_percent_std"]) == pytest.approx(stdev(values))
    assert (rows[2]["jobs"], rows[2]["done"], rows[2]["val_error_percent_mean"]) == ("1", "0", "")
    page = (tmp_path / "summary.html").read_text()
    assert "5.00 ± 1.73" in page
    assert "eps &lt;too&gt; large" in page
    assert page.count("data:image/png;base64,") == 1
    assert "http" not in page
    printed = capsys.readouterr().out
    assert "5.00 ± 1.73" in printed
    assert "0 of 1" in printed


def test_a_summary_of_one_setting_needs_no_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(report.console, "quiet", True)
    sweep_summary.summarise([made({"seed": "0"}, 4.0), made({"seed": "1"}, 6.0)], tmp_path, said="")
    assert not (tmp_path / "summary.png").exists()
    assert "5.00 ± 1.41" in (tmp_path / "summary.html").read_text()


def test_results_of_two_versions_of_the_code_are_noted():
    jobs = [job("1", "0", 5, commit="abc"), job("2", "0", 6, commit="def"), job("4", "0", None, commit="old")]
    (note,) = sweep_summary._notes(jobs)
    assert "2 versions" in note
    assert "abc, def" in note
    assert sweep_summary._notes(jobs[:1]) == []


def test_jobs_of_another_version_or_broken_are_left_out_and_said(tmp_path):
    listed = tmp_path / "sweep" / "jobs"
    listed.mkdir(parents=True)
    metrics = {"good": '{"val/accuracy": 0.5}', "old": '{"accuracy": 0.5}', "broken": '{"val/acc', "none": None}
    for name, text in metrics.items():
        folder = tmp_path / name
        folder.mkdir()
        if text is not None:
            (folder / folders.METRICS).write_text(text)
        (listed / f"{name}.json").write_text(json.dumps({"settings": {"seed": name}, "folder": f"../../{name}"}))
    found = {found.settings["seed"]: found for found in sweep_summary.enlisted(tmp_path / "sweep")}
    assert found["good"].metrics == {"val/accuracy": 0.5}
    assert found["good"].problem is None
    assert {name: found[name].metrics for name in ("old", "broken", "none")} == dict.fromkeys(("old", "broken", "none"))
    assert "another version" in found["old"].problem
    assert found["broken"].problem == found["none"].problem == "interrupted"


# ----------------------------------------------------------------------------------------------------------------- grids


@pytest.fixture
def grids():
    from hydra_plugins.grids import Grids

    def expanded(grids, *overrides, size=None):
        sweeper = Grids(grids)
        sweeper.hydra_context = type("Context", (), {"config_loader": None})()
        return sweeper.split_arguments(OverridesParser.create().parse_overrides(list(overrides)), size)

    return expanded


GRIDS = [{"regularizer": "none"}, {"regularizer": "vat", "vat.eps": "1,2"}]


def test_a_list_of_grids_is_each_grid_crossed_with_the_command_line(grids):
    (jobs,) = grids(GRIDS, "seed=0,1", "data=moons")
    assert jobs == [
        ["regularizer=none", "seed=0", "data=moons"],
        ["regularizer=none", "seed=1", "data=moons"],
        ["regularizer=vat", "vat.eps=1", "seed=0", "data=moons"],
        ["regularizer=vat", "vat.eps=1", "seed=1", "data=moons"],
        ["regularizer=vat", "vat.eps=2", "seed=0", "data=moons"],
        ["regularizer=vat", "vat.eps=2", "seed=1", "data=moons"],
    ]


def test_the_command_line_replaces_a_grids_values_and_no_others(grids):
    (jobs,) = grids(GRIDS, "vat.eps=7")
    assert jobs == [["regularizer=none"], ["regularizer=vat", "vat.eps=7"]]


def test_grids_come_in_batches_where_asked_to(grids):
    assert [len(batch) for batch in grids(GRIDS, "seed=0,1", size=4)] == [4, 2]


@pytest.mark.parametrize("choice", sorted(path.stem for path in (ROOT / "conf" / "sweep").glob("*.yaml")))
def test_every_job_of_every_sweep_composes(compose, choice):
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        sweeper = hydra_compose("train", overrides=[f"sweep={choice}"], return_hydra_config=True).hydra.sweeper
    parser = OverridesParser.create()
    for grid in sweeper.get("grids") or [sweeper.params]:
        overrides = parser.parse_overrides([f"{key}={value}" for key, value in grid.items()])
        assert "eps" not in choice or len(overrides) == 1 + ("weight" in choice)
        for override in overrides:
            if override.is_sweep_override():
                others = [f"{k}={v}".split(",")[0] for k, v in grid.items() if k != override.get_key_element()]
                *_, value = override.sweep_string_iterator()
                compose(f"sweep={choice}", *others, f"{override.get_key_element()}={value}")
    command = (ROOT / "conf" / "sweep" / f"{choice}.yaml").read_text()
    assert f"# python src/train.py -m sweep={choice}" in command


# ------------------------------------------------------------------------------------------------- on the command line


def rows(folder):
    (path,) = folder.glob("multirun/*/summary.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_failing_job_is_reported_and_affects_no_other(main, tmp_path):
    with pytest.raises(SystemExit, match=r"2 of 4 jobs have no result. The same command"):
        main("-m", *SMALL, "vat.eps=-1,0.5", "seed=0,1")
    good, bad = rows(tmp_path)
    assert (good["vat.eps"], good["done"], bad["vat.eps"], bad["done"]) == ("0.5", "2", "-1", "0")
    errors = sorted(tmp_path.glob("multirun/*/error.txt"))
    assert len(errors) == 2
    assert errors[0].read_text().startswith("eps must be a finite number >= 0, got -1.0\n")
    assert "eps must be a finite number" in next(tmp_path.glob("multirun/*/summary.html")).read_text()


def test_a_job_that_failed_is_tried_again_and_its_error_forgotten(main, tmp_path, monkeypatch):
    from vat.lightning.classifier import Classifier

    def failing(self, batch, batch_idx):
        raise ValueError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", failing)
        with pytest.raises(SystemExit, match="2 of 2"):
            main("-m", *SMALL, "seed=0,1")
    main("-m", *SMALL, "seed=0,1")
    assert not list(tmp_path.glob("multirun/*/error.txt"))
    (row,) = rows(tmp_path)
    assert row["done"] == "2"
    assert float(row["val_error_percent_mean"]) < 100


def test_an_interrupted_sweep_has_a_complete_summary_after_it_resumed(main, tmp_path, monkeypatch):
    from vat.runs import training

    whole, started = training.train, []

    def interrupted(cfg, folder, start):
        started.append(cfg.seed)
        if cfg.seed == 1 and len(started) == 2:
            raise KeyboardInterrupt
        return whole(cfg, folder, start)

    monkeypatch.setattr(training, "train", interrupted)
    with pytest.raises(SystemExit) as interruption:
        main("-m", *SMALL, "seed=0,1,2")
    assert interruption.value.code == 130
    main("-m", *SMALL, "seed=0,1,2")
    assert started == [0, 1, 1, 2]
    (row,) = rows(tmp_path)
    assert row["done"] == "3"


def test_a_sweep_over_grids_runs_and_is_one_group(main, tmp_path, monkeypatch):
    from vat.runs import training

    groups = []

    def pretended(cfg, folder, start):
        groups.append(cfg.logger.group)
        (folder / "metrics.json").write_text('{"val/accuracy": 0.9, "seconds": 1}')
        return folders.finished(folder)

    monkeypatch.setattr(training, "train", pretended)
    sweep = "hydra.sweeper.grids=[{regularizer:none},{regularizer:vat,vat.eps:'1,2'}]"
    main("-m", "hydra/sweeper=grids", sweep, "logger=wandb", "seed=0,1")
    assert len(groups) == 6
    (name,) = set(groups)
    assert (tmp_path / "multirun" / name / "summary.csv").is_file()
    assert {(row["regularizer"], row["vat.eps"]) for row in rows(tmp_path)} == {("none", ""), ("vat", "1"), ("vat", "2")}


def test_the_same_settings_in_another_sweep_are_not_trained_again(main, tmp_path, monkeypatch):
    from vat.runs import training

    whole, trained = training.train, []
    monkeypatch.setattr("vat.runs.training.train", lambda *arguments: trained.append(1) or whole(*arguments))
    main("-m", *SMALL, "vat.eps=0.5,1")
    main("-m", *SMALL, "vat.eps=1,2")
    assert len(trained) == 3
    assert len(list(tmp_path.glob("multirun/*/summary.csv"))) == 2


@pytest.mark.parametrize("word", ["sweep=eps,labels", "sweep=choice(eps,labels)"])
def test_several_grids_at_once_are_refused(main, tmp_path, word):
    with pytest.raises(SystemExit, match=r"sweep=.*: only one sweep at a time"):
        main("-m", word)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_an_unknown_key_is_refused_before_the_first_job(main, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main("-m", *SMALL, "vat.esp=1,2")
    assert "Could not override 'vat.esp'" in capsys.readouterr().err
    assert not list(tmp_path.rglob("checkpoints"))


@pytest.mark.parametrize("overrides", [["vat.eps=range(0,0)"], ["hydra/sweeper=grids"]], ids=" ".join)
def test_an_empty_sweep_is_refused(main, capsys, overrides):
    with pytest.raises(SystemExit) as error:
        main("-m", *overrides)
    assert "the sweep is empty" in str(error.value.code) + capsys.readouterr().err


def test_a_folder_of_another_version_is_reported_and_kept(main, tmp_path):
    main("-m", *SMALL, "seed=0")
    (metrics,) = tmp_path.glob("multirun/*/metrics.json")
    metrics.write_text('{"accuracy": 0.5}')
    with pytest.raises(SystemExit, match="1 of 1 jobs have no result"):
        main("-m", *SMALL, "seed=0")
    assert metrics.read_text() == '{"accuracy": 0.5}'
    assert "another version" in (metrics.parent / "error.txt").read_text()


# ------------------------------------------------------------------------------------------------- several processes

TWO = ["trainer=ddp", "trainer.accelerator=cpu", "vat.direction=exact"]
WRITES_RANKS = """
import json, os, sys
import pytorch_lightning as pl
sys.path.insert(0, {source!r})
start = pl.Trainer.fit
def fit(self, model, *args, **kwargs):
    eps = model.regularizers["vat"].eps
    name = f"rank-{{eps}}-{{self.global_rank}}-{{self.world_size}}.json"
    with open(os.path.join({folder!r}, name), "w") as file:
        json.dump({{"eps": eps, "seed": model.seed, "steps": self.max_steps}}, file)
    return start(self, model, *args, **kwargs)
pl.Trainer.fit = fit
"""


def test_every_rank_of_a_job_of_a_sweep_trains_the_jobs_own_settings(main, job, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(WRITES_RANKS.format(source=str(ROOT / "src"), folder=str(tmp_path)))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT / 'src'}")  # every process reads its sitecustomize at the start
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    main("-m", *SMALL, *TWO, "vat.eps=0.3,0.6")
    ranks = {(eps, rank): json.loads((tmp_path / f"rank-{eps}-{rank}-2.json").read_text()) for eps in (0.3, 0.6) for rank in (0, 1)}
    assert all(told == {"eps": eps, "seed": 0, "steps": 4} for (eps, _), told in ranks.items())
    assert len(list(tmp_path.glob("rank-*"))) == 4
    assert {row["vat.eps"] for row in rows(tmp_path)} == {"0.3", "0.6"}
    for checkpoint in tmp_path.glob("multirun/*/checkpoints/last.ckpt"):
        ours = torch.load(checkpoint, weights_only=True)
        eps = ours["record"]["config"]["vat"]["eps"]
        single = torch.load(job(*SMALL, "vat.direction=exact", f"vat.eps={eps}", name=str(eps)).checkpoint, weights_only=True)
        for name, value in single["state_dict"].items():
            torch.testing.assert_close(ours["state_dict"][name], value, rtol=1e-3, atol=2e-5)


class Process:
    """Replaces a started process that has finished."""

    def __init__(self, status=0, errors=""):
        self.returncode, self.errors = status, errors

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def communicate(self):
        return None, self.errors

    def terminate(self):
        self.returncode = 143


def test_a_signal_to_a_sweep_reaches_the_jobs_own_process(main, tmp_path, monkeypatch):
    class Signalled(Process):
        def communicate(self):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().communicate()

    begun, before = [], signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sweeps.subprocess, "Popen", lambda *_, **__: begun.append(Signalled()) or begun[-1])
    with pytest.raises(SystemExit) as end:
        main("-m", *SMALL, *TWO, "seed=0,1")
    assert end.value.code == 143
    assert [process.returncode for process in begun] == [143]  # and the second does not begin
    assert signal.getsignal(signal.SIGTERM) == before
    assert not list(tmp_path.glob("multirun/*/error.txt"))


def test_a_sweep_that_is_told_to_end_does_not_end_as_a_success(main, monkeypatch, capsys):
    from vat.runs import training

    def told(cfg, folder, start):
        raise SIGTERMException

    monkeypatch.setattr(training, "train", told)
    with pytest.raises(SystemExit) as end:
        main("-m", *SMALL, "seed=0,1")
    assert end.value.code == 143
    assert "repeat the command of a sweep" in capsys.readouterr().err


def test_a_folder_with_a_job_of_other_settings_is_not_taken_for_this_one(main, tmp_path):
    numbered = ["hydra.sweep.dir=fixed", "hydra.sweep.subdir=${hydra.job.num}"]
    main("-m", *SMALL, "regularizer=none", "seed=0,1", *numbered)
    main("-m", *SMALL, "regularizer=none", "seed=0,1", "figures=0", *numbered)  # what computes the same is the same job
    with pytest.raises(SystemExit, match="2 of 2 jobs have no result"):
        main("-m", *SMALL, "regularizer=entropy", "seed=0,1", *numbered)
    errors = [path.read_text().splitlines()[0] for path in sorted(tmp_path.glob("fixed/*/error.txt"))]
    assert len(errors) == 2
    assert "fixed/0 holds a job of other settings" in errors[0]


@pytest.mark.parametrize("changed", ["features", "labels"])
def test_a_sweep_on_own_data_that_have_changed_takes_no_old_result(main, tmp_path, changed):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(60, 3)).astype(np.float32), np.arange(60) % 2
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    own = [*SMALL[1:], "data=arrays", "data.train=rows.npz", "vat.eps=0.5,1"]
    main("-m", *own)
    main("-m", *own)  # nothing has changed
    np.savez(tmp_path / "rows.npz", x=-x if changed == "features" else x, y=1 - y if changed == "labels" else y)
    with pytest.raises(SystemExit, match="2 of 2 jobs have no result"):
        main("-m", *own)
    error = next(tmp_path.glob("multirun/*/error.txt")).read_text().splitlines()[0]
    assert "the files have changed since. Delete the folder to train again" in error


def test_the_same_sweep_with_another_logger_counts_each_job_once(main, tmp_path):
    main("-m", *SMALL, "regularizer=none", "seed=0,1")
    main("-m", *SMALL, "regularizer=none", "seed=0,1", "logger=csv")
    (row,) = rows(tmp_path)
    assert (row["jobs"], row["done"]) == ("2", "2")


def test_a_sweep_that_resumes_from_the_newest_run_finds_its_own_checkpoints(main, tmp_path, monkeypatch):
    from vat.runs import training

    starts = []

    def pretended(cfg, folder, start):
        starts.append(start)
        (folder / "metrics.json").write_text('{"val/accuracy": 0.9, "seconds": 1}')
        return folders.finished(folder)

    main("-m", *SMALL, "seed=0")
    (metrics,) = tmp_path.glob("multirun/*/metrics.json")
    metrics.unlink()
    monkeypatch.setattr(training, "train", pretended)
    main("-m", *SMALL, "seed=0", "ckpt_path=last")
    assert [start.resolve() for start in starts] == [metrics.parent / "checkpoints" / "last.ckpt"]


def test_a_job_of_several_processes_starts_a_separate_plain_run(main, tmp_path, monkeypatch):
    started = []

    def run(command, **options):
        started.append(command)
        folder = Path(next(word for word in command if word.startswith("hydra.run.dir=")).split("=")[1].strip("'"))
        (folder / "metrics.json").write_text('{"val/accuracy": 0.5, "seconds": 1}')
        return Process()

    monkeypatch.setattr(sweeps.subprocess, "Popen", run)
    main("-m", *SMALL, *TWO, "vat.eps=0.3,0.6")
    assert len(started) == 2
    for command, eps in zip(started, ("0.3", "0.6"), strict=True):
        assert command[:2] == [sys.executable, str(SCRIPT)]
        assert "-m" not in command
        assert f"vat.eps={eps}" in command
        assert sum(word.startswith("hydra.run.dir=") for word in command) == 1
        assert not any(word.startswith(("hydra.sweep", "hydra.mode", "+hydra.job")) for word in command)
    assert len(rows(tmp_path)) == 2


def test_a_separate_process_that_failed_reports_its_reason(main, tmp_path, monkeypatch):
    said = "a warning\nerror: eps must be >= 0\n"
    monkeypatch.setattr(sweeps.subprocess, "Popen", lambda *_, **__: Process(1, said))
    with pytest.raises(SystemExit, match="1 of 1"):
        main("-m", *SMALL, *TWO, "seed=0")
    (error,) = tmp_path.glob("multirun/*/error.txt")
    assert error.read_text().startswith("eps must be >= 0 (status 1)\n")


def test_a_path_of_any_name_can_be_a_folder(compose):
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    folder = Path("odd = folder's, {name}")
    (word,) = [word for word in sweeps.command([], folder) if word.startswith("hydra.run.dir=")]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = hydra_compose("train", overrides=[word], return_hydra_config=True)
    assert cfg.hydra.run.dir == str(folder)


@pytest.mark.long
@pytest.mark.parametrize(
    "launcher", [["hydra/launcher=submitit_local"], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]], ids=" ".join
)
def test_a_launcher_for_several_jobs_at_a_time_leads_to_the_same_results(shell, main, tmp_path, launcher):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    quick = ["logger=none", "figures=null", "trainer.enable_progress_bar=false"]
    done = shell(SCRIPT, "-m", *SMALL, *quick, "vat.eps=0.3,-1,0.6,0.4,0.5,0.7", *launcher, PYTHONPATH="")  # more than start at first
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: 1 of 6 jobs have no result. The same command tries them again"
    found = {row["vat.eps"]: float(row["val_error_percent_mean"] or math.nan) for row in rows(tmp_path)}
    main("-m", *SMALL, "vat.eps=0.3,0.6", "hydra.sweep.dir=here")
    (path,) = tmp_path.glob("here/*/summary.csv")
    with path.open() as file:
        alone = {row["vat.eps"]: float(row["val_error_percent_mean"]) for row in csv.DictReader(file)}
    assert {eps: found[eps] for eps in alone} == alone
    assert math.isnan(found["-1"])


def test_the_composition_error_names_what_is_wrong(compose):
    with pytest.raises(HydraException, match=r"vat\.eps"):
        compose("regularizer=none", "vat.eps=1")


def test_the_single_run_of_a_job_is_no_sweep(tmp_path):
    assert "sweep=eps" not in (words := sweeps.command(["sweep=eps", "vat.eps=1"], tmp_path))  # train.py would refuse them
    assert "vat.eps=1" in words


def test_a_job_gives_the_sampler_its_validation_error(main, monkeypatch):
    whole, found = sweeps.job, []
    monkeypatch.setattr(sweeps, "job", lambda *given: found.append(whole(*given)) or found[-1])
    monkeypatch.setattr("vat.runs.training.train", lambda *_: {"val/accuracy": 0.9, "seconds": 1.0})
    with pytest.raises(SystemExit):  # no job has left anything
        main("-m", "data=moons", "model=mlp", "seed=0,1")
    assert found == pytest.approx([0.1, 0.1])
