"""The study: every seed of every method, summarised as said."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import running_scripts

SCRIPT = Path(__file__).parents[2] / "scripts" / "robustness_study.py"


@pytest.fixture
def study():
    return running_scripts.load("robustness_study")


def leave(folder, method, seed):
    path = folder / "digits" / "test" / method / str(seed) / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.touch()
    (path.parents[1] / "metrics.json").touch()
    return path


def report(clean, worst, warnings):
    robust = {"l2": {"eps": [0.5, 1.0], "accuracy": {"worst": worst}}}
    return {"clean": {"accuracy": clean}, "robust": robust, "warnings": warnings, "examples": 5, "of": 5, "unit": "pixels"}


def test_the_table_holds_mean_and_spread_over_the_seeds(study, tmp_path, monkeypatch):
    accuracy = {
        ("none", 0): (0.9, [0.5, 0.0]),
        ("none", 10): (0.8, [0.3, 0.0]),
        ("VAT-1", 0): (0.9, [0.8, 0.6]),
        ("VAT-1", 10): (0.9, [0.8, 0.6]),
    }
    for method, seed in accuracy:
        leave(tmp_path, method, seed)

    def run(command, **_):
        assert command.index("attack=worst_case") < command.index("limit=5")  # what the user types comes last, and wins
        subjects = next(word for word in command if word.startswith("ckpt_path=")).removeprefix("ckpt_path=")
        for checkpoint in (Path(subject.strip("'")) for subject in subjects.split(",")):
            method, seed = checkpoint.parents[2].name, int(checkpoint.parents[1].name)
            folder = checkpoint.parents[1] / "evaluation" / "robustness-01234567"
            folder.mkdir(parents=True)
            warned = {"huge_eps": "…"} if (method, seed) == ("none", 10) else {}
            (folder / "robustness.json").write_text(json.dumps(report(*accuracy[method, seed], warned)))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(study.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["robustness_study.py", "digits", "--folder", str(tmp_path), "--jobs", "1", "limit=5"])
    study.main()
    rows = (tmp_path / "digits" / "robustness.md").read_text().splitlines()
    assert rows[2] == "| method | clean | l2, ε = 0.5 | l2, ε = 1 | warnings |"
    assert rows[4:] == [
        "| VAT-1 | 90.0 ± 0.0 | 80.0 ± 0.0 | 60.0 ± 0.0 | none |",
        "| none | 85.0 ± 7.1 | 40.0 ± 14.1 | 0.0 ± 0.0 | huge_eps (1) |",
    ]
    assert (tmp_path / "digits" / "robustness.png").stat().st_size > 0


def test_radii_follow_from_the_tables_name(study, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(study, "evaluate", lambda paths, settings: given.append(settings))
    monkeypatch.setattr(study, "checkpoints", lambda folder: {"none": [folder]})
    for name in ("mnist_100", "digits", "moons"):
        study.evaluated(tmp_path / name, ["eps.l2=[9]"], 1)
    assert given[0] == ["attack=worst_case", *study.RADII["mnist"], "eps.l2=[9]"]
    assert given[1:] == [["attack=worst_case", *study.RADII["digits"], "eps.l2=[9]"], ["attack=worst_case", "eps.l2=[9]"]]


def test_a_table_must_be_named(study, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["robustness_study.py", "eps.l2=[9]"])
    with pytest.raises(SystemExit, match="no table given"):
        study.main()


def test_methods_with_other_seeds_are_refused(study, tmp_path):
    for method, seed in (("none", 0), ("none", 1), ("VAT", 0)):
        leave(tmp_path, method, seed)
    with pytest.raises(SystemExit, match="got none with 0, 1 and VAT with 0: finish"):
        study.checkpoints(tmp_path / "digits" / "test")


def test_a_job_that_was_interrupted_does_not_count(study, tmp_path):
    done, cut = (leave(tmp_path, "none", seed) for seed in (0, 1))
    (cut.parents[1] / "metrics.json").unlink()
    assert study.checkpoints(tmp_path / "digits" / "test") == {"none": [done]}


def test_no_checkpoint_is_one_line(study, tmp_path):
    with pytest.raises(SystemExit, match="contains no finished job"):
        study.checkpoints(tmp_path)
