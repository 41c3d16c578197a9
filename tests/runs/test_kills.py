"""A run that is killed at any fsync or rename and resumed has the same folder as a run that was never killed, file by file."""

import itertools
import json
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml
from forks import die, ended, forked, leaves

from vat.lightning.classifier import Classifier
from vat.runs import checkpoints

SETTINGS = [
    "hydra.run.dir=run",
    "data=moons",
    "model=mlp",
    "model.hidden=[8]",
    "vat.direction=finite_difference",
    "data.steps_per_epoch=2",
    "trainer.max_steps=8",
    "trainer.log_every_n_steps=1",
    "logger=csv",
    "optimizer.lr=0.05",
]
VALIDATIONS = 4


def counting(number=None):
    """Count the calls of `os.fsync` and `os.replace` from here on, and die instead of the call of this number."""
    calls = itertools.count()

    def counted(call):
        def done(*arguments, **options):
            if next(calls) == number:
                die()
            return call(*arguments, **options)

        return done

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    return calls


def attempt(main, *overrides, kill_at=None):
    """The exit status of the run, or of the run that resumes it. "calls.txt" gets the number of calls of a finished run."""
    whole = checkpoints.newest_whole(Path("run"))

    def job():
        calls = counting(kill_at)
        main(*SETTINGS, *overrides, *([] if whole is None else [f"ckpt_path={whole}"]))
        Path("calls.txt").write_text(str(next(calls)))

    return ended(forked(job))


def left(folder):
    """Every file of a run except Hydra's, without the times, the command and the names of folders."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and ".hydra" not in p.parts and p.name != "train.log"):
        name = str(path.relative_to(folder))
        if path.suffix == ".ckpt":
            values = dict(leaves(torch.load(path, weights_only=True)))
            found[name] = {k: v for k, v in values.items() if "best_k_models" not in k and not str(v).startswith("/")}
        elif path.suffix in (".json", ".yaml"):
            found[name] = dict(leaves(yaml.safe_load(path.read_text())))
        elif path.suffix == ".jsonl":
            found[name] = dict(leaves([json.loads(line) for line in path.read_text().splitlines()]))
        elif path.name == "index.html":
            # Line by line, because a picture's line has a million characters, and a pattern that starts with .* takes minutes there.
            lines = [line for line in path.read_text().splitlines() if "wall time" not in line and "command" not in line]
            found[name] = [line for line in lines if "ckpt_path: " not in line and '<p class="said">' not in line and ">git<" not in line]
        else:
            found[name] = path.read_bytes()
        if isinstance(found[name], dict):
            found[name] = {key: value for key, value in found[name].items() if key[-1] not in ("seconds", "command", "ckpt_path", "git")}
    return found


def different(found, known):
    """Names of the files, and of the values in checkpoints, that differ."""

    def same(one, other):
        return torch.equal(one, other) if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) else one == other

    wrong = sorted(found.keys() ^ known.keys())
    for name in found.keys() & known.keys():
        one, other = found[name], known[name]
        if isinstance(one, dict):
            wrong += [
                (name, key) for key in one.keys() | other.keys() if key not in one or key not in other or not same(one[key], other[key])
            ]
        elif one != other:
            wrong.append(name)
    return wrong


def in_folder(tmp_path, monkeypatch, name):
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder / "run"


SHORT = range(3, 1000, 16)
LONG = range(1000)


@pytest.mark.parametrize(
    ("test", "figures", "numbers"),
    [
        ("best", "null", SHORT),
        pytest.param("best", "0", LONG, marks=pytest.mark.long),
        pytest.param("last", "null", LONG, marks=pytest.mark.long),
    ],
)
def test_a_run_killed_at_any_fsync_or_rename_leaves_the_same_folder(main, tmp_path, monkeypatch, record_property, test, figures, numbers):
    settings = [f"test={test}", f"figures={figures}"]
    run = in_folder(tmp_path, monkeypatch, "whole")
    assert attempt(main, *settings) == 0
    known, calls = left(run), int(Path("calls.txt").read_text())
    assert calls > 8 * VALIDATIONS
    kills = [number for number in numbers if number < calls]
    wrong = {}
    for number in kills:
        run = in_folder(tmp_path, monkeypatch, str(number))
        assert attempt(main, *settings, kill_at=number) == -signal.SIGKILL, number
        assert attempt(main, *settings) == 0, number
        wrong[number] = different(left(run), known)
    assert {number: what for number, what in wrong.items() if what} == {}
    record_property("kills at an fsync or a rename", len(kills))


def at_step(number):
    whole = Classifier.training_step

    def training_step(self, batch, batch_idx):
        if batch.micro_step == number:
            die()
        return whole(self, batch, batch_idx)

    Classifier.training_step = training_step


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
def test_the_best_checkpoint_is_the_same_after_a_kill_in_the_epoch_behind_it(main, tmp_path, monkeypatch, seed):
    """The accuracies are given, so the best one is known."""
    accuracies = [0.5, 0.9, 0.6, 0.7]

    def job(kill, *overrides):
        def run():
            compute = Classifier.on_validation_epoch_end

            def on_validation_epoch_end(self):
                compute(self)
                fitting = self.trainer.state.fn == "fit"
                value = accuracies[self.trainer.global_step // 2 - 1] if fitting else 0.7
                self.log("val/accuracy", value)

            Classifier.on_validation_epoch_end = on_validation_epoch_end
            if kill:
                at_step(4)
            main(*SETTINGS, "test=best", f"seed={seed}", *overrides)

        return ended(forked(run))

    run = in_folder(tmp_path, monkeypatch, "whole")
    assert job(False) == 0
    known = left(run)
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 4
    run = in_folder(tmp_path, monkeypatch, "killed")
    assert job(True) == -signal.SIGKILL
    assert job(False, "ckpt_path=run/checkpoints/last.ckpt") == 0
    assert different(left(run), known) == []
