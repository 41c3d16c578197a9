"""A job's folder: torn files, full disks, other runs' checkpoints, clocks."""

import csv
import errno
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from vat.lightning.history import read
from vat.runs import checkpoints

SCRIPTS = Path(__file__).parents[2] / "src"
SMALL = ("data=moons", "model=mlp", "model.hidden=[4]", "test=none", "vat.direction=finite_difference", "logger=csv")


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_checkpoint_of_another_run_continues_in_the_folder_of_a_finished_one(job, differences):
    """Both runs are at their last step. So nothing is left to train, and only the files distinguish the runs."""
    a, b = job(*SMALL, "seed=0", name="a"), job(*SMALL, "seed=0", "vat.eps=3", "optimizer.lr=0.1", name="b")
    theirs = weights(b.checkpoint)
    assert differences(weights(a.checkpoint), theirs)
    again = job(*SMALL, "seed=0", "vat.eps=3", "optimizer.lr=0.1", f"ckpt_path={b.checkpoint}", name="a")
    assert differences(weights(a.checkpoint), theirs) == []
    assert differences(weights(a.folder / "checkpoints" / "best.ckpt"), weights(b.folder / "checkpoints" / "best.ckpt")) == []
    for path in (a.folder / "checkpoints").iterdir():
        assert torch.load(path, weights_only=True)["record"]["config"]["vat"]["eps"] == 3
    assert again.metrics | {"seconds": 0} == b.metrics | {"seconds": 0}
    assert (a.folder / "metrics.1.csv").is_file()  # the logged rows of the finished run are kept


def test_a_new_run_in_a_folder_keeps_no_checkpoint_of_the_run_before(job):
    first = job(*SMALL, "seed=0")
    job(*SMALL, "seed=1")
    saved = {path.name: torch.load(path, weights_only=True) for path in (first.folder / "checkpoints").iterdir()}
    assert {found["record"]["config"]["seed"] for found in saved.values()} == {1}
    assert [record["step"] for record in read(first.folder / "history.jsonl")] == [5]


def test_a_damaged_last_checkpoint_does_not_replace_the_whole_one_before(job):
    run = job(*SMALL, "data.steps_per_epoch=1")
    run.checkpoint.write_bytes(b"damaged")
    previous = run.checkpoint.with_name("previous.ckpt")
    step = checkpoints.read_checkpoint(previous)["global_step"]
    assert step == 4
    job(*SMALL, "data.steps_per_epoch=1", f"ckpt_path={previous}")
    assert checkpoints.read_checkpoint(run.checkpoint)["global_step"] == 5
    assert checkpoints.read_checkpoint(previous)["global_step"] == 4


def test_last_is_the_unfinished_run_whatever_the_clocks_say(main, tmp_path):
    main(*SMALL)
    (finished,) = tmp_path.glob("outputs/*/*")
    killed = finished.with_name("00-00-00" + finished.name[8:])
    os.system(f"cp -r {finished} {killed}")
    (killed / "metrics.json").unlink()
    os.utime(killed / "checkpoints", (1, 1))
    main(*SMALL, "ckpt_path=last")
    assert (killed / "metrics.json").is_file()


def test_metrics_csv_of_an_earlier_version_is_set_aside(job):
    run = job(*SMALL, "data.steps_per_epoch=1")
    saved = torch.load(run.checkpoint, weights_only=True)
    del saved["logged"]
    torch.save(saved, run.checkpoint)
    with (run.folder / "history.jsonl").open("a") as file:
        file.write('{"step": 6, "val/error": 0.5}\n')
    before = (run.folder / "metrics.csv").read_text()
    job(*SMALL, "data.steps_per_epoch=1", f"ckpt_path={run.checkpoint}")
    assert (run.folder / "metrics.1.csv").read_text() == before
    assert [record["step"] for record in read(run.folder / "history.jsonl")] == [1, 2, 3, 4, 5]


def test_a_row_that_is_torn_is_cut_off(job):
    run = job(*SMALL, "data.steps_per_epoch=1")
    path = run.folder / "metrics.csv"
    whole = list(csv.DictReader(path.open()))
    with path.open("a") as file:
        file.write("9,9")
    job(*SMALL, "data.steps_per_epoch=1", f"ckpt_path={run.checkpoint}")
    assert list(csv.DictReader(path.open())) == whole


TORN = ("metrics.json", "config.yaml", "environment.json", "history.jsonl", "error.txt", "index.html", "metrics.csv", "hparams.yaml")


@pytest.mark.parametrize("content", ["nothing", "half"])
def test_a_sweep_recovers_from_files_that_are_empty_or_torn(main, tmp_path, content):
    sweep = ("-m", *SMALL, "seed=0,1")
    main(*sweep)
    metrics = min(tmp_path.glob("multirun/*/metrics.json"))
    known = json.loads(metrics.read_text())
    folder = metrics.parent
    (folder / "error.txt").write_text("failed\n")
    listed = list(tmp_path.glob("multirun/*/jobs/*.json"))
    assert len(listed) == 2
    for path in [*(folder / name for name in TORN), *listed]:
        text = path.read_bytes()
        path.write_bytes(b"" if content == "nothing" else text[: len(text) // 2])
    main(*sweep)
    assert json.loads(metrics.read_text()) | {"seconds": 0} == known | {"seconds": 0}
    assert not (folder / "error.txt").exists()
    (summary,) = tmp_path.glob("multirun/*/summary.csv")
    assert [row["done"] for row in csv.DictReader(summary.open())] == ["2"]


@pytest.mark.parametrize("full", ["one folder", "its end", "the list of jobs"])
def test_a_full_disk_ends_one_job_with_its_name_and_not_the_sweep(main, tmp_path, monkeypatch, capsys, full):
    fsync = os.fsync
    failed = []

    def of_full_disk(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        folder = Path(path).parent
        hit = {
            "one folder": "multirun" in path and (not failed or str(folder).startswith(failed[0])) and "jobs" not in path,
            "its end": "metrics.json" in path and not failed,
            "the list of jobs": folder.name == "jobs" and not failed,
        }[full]
        if hit:
            failed.append(str(folder))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_full_disk)
    with pytest.raises(SystemExit, match=r"No space left on device|1 of 2 jobs have no result") as end:
        main("-m", *SMALL, "seed=0,1")
    assert len(list(tmp_path.glob("multirun/*/metrics.json"))) == 1
    if full != "its end":
        assert "failed: " in str(end.value)
    monkeypatch.setattr(os, "fsync", fsync)
    main("-m", *SMALL, "seed=0,1")
    assert len(list(tmp_path.glob("multirun/*/metrics.json"))) == 2


def test_a_terminal_that_is_not_utf8_ends_no_run(shell):
    quick = ("trainer.max_steps=2", "data.steps_per_epoch=1", "logger=none", "figures=null")
    done = shell(SCRIPTS / "train.py", *SMALL[:4], *quick, PYTHONIOENCODING="ascii", PYTHONUTF8="0", FORCE_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert "val accuracy" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="devices")
@pytest.mark.parametrize("output", ["/dev/null", "link"])
def test_predictions_replace_no_device(job, tmp_path, output):
    from vat.runs.predicting import predict

    run = job(*SMALL)
    rows = tmp_path / "rows.csv"
    rows.write_text("\n".join([",".join(f"f{i}" for i in range(100)), *[",".join(["0.5"] * 100)] * 3]) + "\n")
    path = Path(output)
    if output == "link":
        path.symlink_to("/dev/null")
    with pytest.raises(ValueError, match=f"output={output} is not a regular file"):
        predict(run.checkpoint, rows, path)
    assert Path("/dev/null").is_char_device()
    target = tmp_path / "target.csv"
    (tmp_path / "good.csv").symlink_to(target)
    assert predict(run.checkpoint, rows, tmp_path / "good.csv") == 3
    assert (tmp_path / "good.csv").is_symlink()
    assert len(target.read_text().splitlines()) == 4
