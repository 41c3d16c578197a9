"""Search: Optuna over runs of train.py, and the W&B sweep over the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import running_scripts
import torch
import yaml
from pytorch_lightning.utilities.exceptions import SIGTERMException

optuna = pytest.importorskip("optuna")
ROOT = Path(__file__).parents[2]
SPACE = ["vat.eps=tag(log,interval(0.1,10))", "data=moons"]


@pytest.fixture(scope="module")
def search():
    import train  # noqa: F401  # registers the schemas

    return running_scripts.load("search")


@pytest.fixture
def call(search, tmp_path, monkeypatch):
    """Arguments of the command line -> the study after it; training is played by `play(folder, command)`, which yields errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "LOOK_EVERY", 0)
    monkeypatch.setattr(search.os, "killpg", lambda pid, signal: None)
    monkeypatch.setenv("VAT_SWEEP", "before")  # put back at the end

    def run(*arguments, play, folder="s"):
        class Played:
            pid = 0

            def __init__(self, command, **_):
                self.folder = Path(next(w for w in command if w.startswith("hydra.run.dir=")).split("=")[1].strip("'"))
                self.errors, self.step, self.last = iter(play(self.folder, command)), 0, None

            def poll(self):
                for error in self.errors:
                    self.last, self.step = error, self.step + 10
                    with (self.folder / "history.jsonl").open("a") as file:
                        file.write(json.dumps({"step": self.step, "val/error": self.last}) + "\n")
                    return None
                if self.last is not None:
                    (self.folder / "metrics.json").write_text(json.dumps({"val/accuracy": 1 - self.last}))
                return 0 if self.last is not None else 1

            def wait(self):
                pass

        monkeypatch.setattr(search.subprocess, "Popen", Played)
        monkeypatch.setattr(sys, "argv", ["search.py", *arguments, "--folder", folder])
        search.main()
        return optuna.load_study(study_name="vat", storage=f"sqlite:///{folder}/study.db")

    return run


def eps_of(command):
    return float(next(word for word in command if word.startswith("vat.eps=")).split("=")[1])


def test_it_finds_the_radius_with_the_least_validation_error(call):
    study = call(*SPACE, "--trials", "25", play=lambda _, command: [abs(eps_of(command) - 2) / 10] * 2)
    assert study.best_params["vat.eps"] == pytest.approx(2, rel=0.3)
    assert len(study.trials) == 25
    assert all(0.1 <= trial.params["vat.eps"] <= 10 for trial in study.trials)


def test_hopeless_runs_are_stopped(call):
    trained = []

    def play(_, command):
        for _ in range(10):
            trained.append(1)
            yield 0.1 if len(trained) <= 50 else 0.9

    study = call(*SPACE, "--trials", "8", play=play)
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE"] * 5 + ["PRUNED"] * 3
    assert len(trained) < 65


class KilledError(BaseException):
    """Optuna does not see it, and leaves the trial as a kill would: running."""


@pytest.mark.parametrize(
    ("end", "seen"), [(KilledError, KilledError), (KeyboardInterrupt, SystemExit), (SIGTERMException, SystemExit)]
)  # Ctrl-C: no traceback
def test_an_interrupted_trial_comes_first_and_no_more_than_asked_for_are_run(call, end, seen):
    begun = []

    def interrupted(_, command):
        begun.append(eps_of(command))
        if len(begun) == 3:
            raise end
        return [0.3, 0.2]

    with pytest.raises(seen):
        call(*SPACE, "--trials", "5", play=interrupted)
    study = call(*SPACE, "--trials", "5", play=lambda _, command: begun.append(eps_of(command)) or [0.3, 0.2])
    assert begun[3] == begun[2]
    assert [trial.state.name for trial in study.trials].count("COMPLETE") == 5
    again = call(*SPACE, "--trials", "5", play=lambda *_: pytest.fail("nothing was left to do"))
    assert len(again.trials) == len(study.trials)


@pytest.mark.parametrize("end", [KilledError, KeyboardInterrupt, SIGTERMException])
def test_however_often_it_is_interrupted_each_trial_is_done_once_and_none_is_missing(call, end):
    begun, done = [], []

    def interrupted(_, command):
        begun.append(eps_of(command))
        if len(begun) in (2, 3, 4):  # the second trial, three times
            raise end
        done.append(eps_of(command))
        return [0.3, 0.2]

    for _ in range(3):
        with pytest.raises((end, SystemExit)):
            call(*SPACE, "--trials", "4", play=interrupted)
    study = call(*SPACE, "--trials", "4", play=interrupted)
    assert begun[1] == begun[2] == begun[3] == begun[4]
    assert len(done) == len(set(done)) == 4
    assert [trial.state.name for trial in study.trials].count("COMPLETE") == 4


def test_a_run_that_outlived_its_search_is_waited_for(call, search, tmp_path, monkeypatch):
    begun = []
    (folder,) = call(*SPACE, "--trials", "1", play=lambda f, _: begun.append(f) or [0.5]) and begun
    asked = []

    def held(lock, *, wait=False):
        asked.append((os.path.relpath(lock.name), wait))
        return wait

    monkeypatch.setattr(search.files, "lock", held)
    search._wait_for_an_orphan(folder)
    assert asked == [(str(folder / ".lock"), False), (str(folder / ".lock"), True)]


def test_a_run_that_fails_stops_nothing(call, capsys):
    begun = []
    study = call(*SPACE, "--trials", "3", play=lambda *_: begun.append(1) or ([] if len(begun) == 1 else [0.2]))
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert "failed, see" in capsys.readouterr().out


def test_a_study_of_other_settings_is_refused_and_kept(call):
    call(*SPACE, "--trials", "1", play=lambda *_: [0.5])
    before = Path("s/study.db").read_bytes()
    with pytest.raises(SystemExit, match=r"error: s contains a study with other settings, .*choose another --folder"):
        call("vat.eps=1,2", "--trials", "1", play=lambda *_: [0.5])
    assert Path("s/study.db").read_bytes() == before


def test_a_file_that_is_no_study_is_refused_and_kept(call):
    Path("s").mkdir()
    Path("s/study.db").write_text("something else entirely, and long enough to be looked at" * 20)
    with pytest.raises(SystemExit, match=r"error: s/study.db is not a study that this version can read"):
        call(*SPACE, play=lambda *_: [0.5])
    assert Path("s/study.db").read_text().startswith("something else")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["vat.esp=interval(0,1)"], "vat.esp"),
        (["vat.eps=1"], "has nothing to search"),
        (["vat.eps=a,b"], "vat.eps"),
        (["vat.eps=interval(2,1)"], "the end of the interval must be > its start"),
        (["vat.eps=tag(log,interval(0,1))"], "logarithmic interval must be > 0, got 0"),
        (["vat.eps=1,2", "vat.eps=interval(1,2)"], "has a key twice: give each key once"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_any_run(call, overrides, said):
    with pytest.raises(SystemExit) as error:
        call(*overrides, play=lambda *_: pytest.fail("a run began"))
    assert str(error.value.code).startswith("error: ")
    assert said in str(error.value.code)


def test_values_are_of_the_kind_that_was_asked_for(search):
    space, shared = search.parsed(
        ["vat.eps=interval(1,2)", "model=cnn,mlp", "vat.num_power_iterations=int(interval(1,3))", "seed=range(3)"]
    )
    assert "test=none" in shared
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    eps, model, iterations, seed = zip(
        *[[search.suggested(trial, o) for o in space] for trial in (study.ask() for _ in range(20))], strict=True
    )
    assert all(isinstance(v, float) and 1 <= v <= 2 for v in eps)
    assert set(model) == {"cnn", "mlp"}
    assert set(iterations) == {1, 2, 3}
    assert set(map(str, seed)) == {"0", "1", "2"}


def test_every_setting_of_the_wandb_sweep_composes(compose):
    sweep = yaml.safe_load((ROOT / "scripts" / "wandb_sweep.yaml").read_text())
    assert (ROOT / sweep["program"]).is_file()
    assert sweep["command"] == ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
    assert sweep["metric"] == {"name": "val/error", "goal": "minimize"}
    ends = {
        key: told.get("values") or [told.get("min", told.get("value")), told.get("max", told.get("value"))]
        for key, told in sweep["parameters"].items()
    }
    for end in (0, -1):
        compose(*(f"{key}={values[end]}" for key, values in ends.items()))


@pytest.mark.long
def test_every_rank_of_a_sampled_trial_trains_the_trials_own_settings(tmp_path):
    """Ranks at different settings would average gradients that no single process has."""
    small = ["data=moons", "model=mlp", "model.hidden=[16]", "model.batch_norm=false", "vat.direction=exact", "logger=none", "figures=null"]
    small += ["trainer.max_steps=4", "data.steps_per_epoch=4"]
    two = ["trainer=ddp", "trainer.accelerator=cpu"]

    def run(script, *arguments):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
        subprocess.run([sys.executable, str(ROOT / script), *arguments], cwd=tmp_path, env=environment, check=True, timeout=600)

    run("scripts/search.py", "vat.eps=tag(log,interval(0.1,10))", *small, *two, "--trials", "2", "--folder", "s")
    checkpoints = sorted(tmp_path.glob("s/**/last.ckpt"))
    assert len(checkpoints) == 2
    for number, path in enumerate(checkpoints):
        ours = torch.load(path, weights_only=True)
        eps = ours["record"]["config"]["vat"]["eps"]
        run("src/train.py", *small, f"vat.eps={eps}", "test=none", f"hydra.run.dir=single-{number}")
        single = torch.load(tmp_path / f"single-{number}" / "checkpoints" / "last.ckpt", weights_only=True)
        for name, value in single["state_dict"].items():
            torch.testing.assert_close(ours["state_dict"][name], value, rtol=1e-3, atol=2e-5)
