"""Complete jobs: errors before any work, seeds, restarts, and the command line itself."""

import json
import math
import os
import warnings
from itertools import chain, repeat
from pathlib import Path

import official
import pytest
import torch
from refusals import refused

from vat.lightning.classifier import Classifier
from vat.runs import report

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "src" / "train.py"


def state(checkpoint, key="state_dict"):
    return torch.load(checkpoint, weights_only=True)[key]


# ------------------------------------------------------------------------------------------ errors, before any training


@pytest.fixture
def no_training(monkeypatch):
    """Fail the test at the first training step."""

    def stepped(self, batch, batch_idx):
        raise AssertionError("a training step ran")

    monkeypatch.setattr(Classifier, "training_step", stepped)


def assert_refused(main, folder, overrides, *words):
    before = sorted(folder.rglob("*.ckpt"))
    message = refused(main, *overrides)
    for word in words:
        assert word in message
    assert sorted(folder.rglob("*.ckpt")) == before
    assert not list(folder.rglob("metrics.json"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("vat.eps=-1", ["eps", ">= 0", "-1.0"]),
        ("vat.eps=nan", ["eps", ">= 0", "nan"]),
        ("vat.weight=-2", ["weight", ">= 0", "-2.0"]),
        ("vat.xi=0", ["xi", "> 0", "0.0"]),
        ("vat.num_power_iterations=0", ["num_power_iterations", ">= 1", "got 0"]),
        ("vat.norm=l3", ["norm", "'l3'", "l2, linf"]),
        ("vat.direction=foo", ["direction", "'foo'", "finite_difference", "exact", "margin"]),
        ("vat.divergence=foo", ["divergence", "'foo'", "categorical"]),
        ("data.num_labeled=5000", ["num_labeled", "5000", "1000"]),
        ("data.num_labeled=5", ["num_labeled", "got 5", "at least 10", "balanced=False"]),
        ("data.num_labeled=0", ["num_labeled", "got 0", "from 1 to"]),
        ("data.batch_size_labeled=0", ["batch_size_labeled", "got 0"]),
        ("data.steps_per_epoch=0", ["steps_per_epoch", ">= 1", "got 0"]),
        ("model.channels=[8,8,8,8]", ["input_shape", "(1, 8, 8)", ">= 16"]),
        ("model.channels=[]", ["channels", "at least one"]),
        ("ckpt_path=missing", ["ckpt_path=missing", "no such file"]),
        ("ckpt_path=last", ["ckpt_path=last", "start one without ckpt_path"]),
        ("test=foo", ["test=foo", "last, best, none"]),
        ("seed=-1", ["-1", "0 to 4294967295"]),
        ("seed=abc", ["seed", "abc"]),
        ("ema=2", ["ema=2", "< 1"]),
        ("lds_eps=-1", ["lds_eps=-1", ">= 0"]),
        ("trainer.precision=bf16-true", ["trainer.precision=bf16-true", "bf16-mixed"]),
        ("trainer.max_steps=-1", ["scheduler.T_max=-1", "trainer.max_steps"]),
        ("trainer.limit_val_batches=0", ["trainer.limit_val_batches=0", "ends with a validation"]),
        ("trainer.limit_test_batches=0", ["trainer.limit_test_batches=0", "test=none"]),
        ("trainer.limit_train_batches=0", ["trainer.limit_train_batches=0", "nothing would be trained"]),
        ("trainer.accumulate_grad_batches=0", ["trainer.accumulate_grad_batches=0", "an integer >= 1"]),
        ("trainer.accumulate_grad_batches=-1", ["trainer.accumulate_grad_batches=-1", "an integer >= 1"]),
        ("trainer.gradient_clip_val=-1", ["trainer.gradient_clip_val=-1", ">= 0"]),
        ("trainer.max_epochs=0", ["trainer.max_epochs=0", "trainer.max_steps"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_any_training(main, no_training, tmp_path, override, words):
    assert_refused(main, tmp_path, [override], *words)


def test_the_whole_error_is_shown_on_request(main, no_training, monkeypatch):
    from hydra.errors import InstantiationException

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(InstantiationException, match="eps must be a finite number"):
        main("vat.eps=-1")


@pytest.fixture
def checkpoint(job):
    return job("test=none", name="before").checkpoint


def test_a_truncated_checkpoint_is_refused(checkpoint, main, no_training, tmp_path):
    (checkpoint.parents[1] / "metrics.json").unlink()
    whole = checkpoint.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 100):
        checkpoint.write_bytes(whole[:length])
        assert_refused(main, tmp_path, [f"ckpt_path={checkpoint}"], str(checkpoint), "truncated", "earlier")


def test_a_file_that_is_no_checkpoint_of_this_project_is_refused(main, no_training, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert_refused(main, tmp_path, ["ckpt_path=other.ckpt"], "other.ckpt", "record")
    (tmp_path / "text.ckpt").write_text("not a checkpoint at all")
    assert_refused(main, tmp_path, ["ckpt_path=text.ckpt"], "text.ckpt", "no checkpoint")


def test_a_checkpoint_that_would_execute_code_is_refused(main, no_training, tmp_path):
    class Command:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"state_dict": {}, "record": Command()}, tmp_path / "evil.ckpt")
    assert_refused(main, tmp_path, ["ckpt_path=evil.ckpt"], "evil.ckpt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.channels=[16,64]"], ["another architecture", "layers.0.weight", "(32, 1, 3, 3)", "(16, 1, 3, 3)", "[32, 64]"]),
        (["model=mlp"], ["another architecture", "absent", "[32, 64]"]),
        (["seed=1"], ["another split", "Keep seed"]),
        (["data.num_labeled=60"], ["another split", "data settings"]),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_run_is_refused(checkpoint, main, no_training, tmp_path, overrides, words):
    (checkpoint.parents[1] / "metrics.json").unlink()
    assert_refused(main, tmp_path, [f"ckpt_path={checkpoint}", *overrides], str(checkpoint), *words)


@pytest.mark.parametrize("override", ["regularizer=mean_teacher", "regularizer=none", "optimizer=sgd"])
def test_a_checkpoint_of_another_regularizer_or_optimizer_is_refused(checkpoint, main, no_training, tmp_path, override):
    (checkpoint.parents[1] / "metrics.json").unlink()
    overrides = [f"ckpt_path={checkpoint}", override, "trainer.max_steps=10"]
    assert_refused(main, tmp_path, overrides, str(checkpoint), override.split("=")[0])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.lr=0.5", ["optimizer.lr=0.002", "here it is 0.5"]),
        ("trainer.max_steps=10", ["scheduler.T_max=5", "here it is 10", "schedule and length", "start a new run"]),
    ],
)  # the run would use the checkpoint's, but print and record these
def test_a_checkpoint_of_another_rate_or_schedule_is_refused(checkpoint, main, no_training, tmp_path, override, words):
    (checkpoint.parents[1] / "metrics.json").unlink()
    assert_refused(main, tmp_path, [f"ckpt_path={checkpoint}", override], str(checkpoint), *words)


def test_an_output_folder_that_cannot_be_written_is_refused(job, no_training, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"output folder .*file/job cannot be written .* set hydra\.run\.dir="):
        job(name="file/job")
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_output_folder_that_cannot_be_written_is_one_line_on_the_command_line(main, no_training, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert_refused(main, tmp_path, ["hydra.run.dir=file/job"], "file/job", "hydra.run.dir")


def test_a_sweeps_folder_that_cannot_be_written_is_one_line_too(main, no_training, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert_refused(main, tmp_path, ["-m", "seed=0,1", "hydra.sweep.dir=file/sweep"], "file/sweep", "hydra.sweep.dir")


def test_a_list_of_seeds_within_a_sweep_is_one_line(main, no_training, tmp_path):
    assert_refused(main, tmp_path, ["-m", "seed=[0,1]"], "seed", "could not be converted to Integer")


def test_a_sweep_without_m_is_refused_with_the_way_out(main, no_training, tmp_path):
    assert_refused(main, tmp_path, ["sweep=eps"], "sweep=eps is for several jobs: add -m")


def test_a_folder_instead_of_a_checkpoint_is_refused_with_the_file_in_it(main, no_training, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert_refused(main, tmp_path, ["ckpt_path=run"], "ckpt_path=run is a folder. Name a file")
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    file.write_bytes(b"")
    from vat.runs import folders

    with pytest.raises(FileNotFoundError, match=r"as ckpt_path=.*run/checkpoints/last\.ckpt$"):
        folders.existing(tmp_path / "run")


@pytest.mark.parametrize("spoil", ["labels", "inputs"])
def test_data_that_cannot_be_trained_on_is_refused(main, no_training, tmp_path, monkeypatch, spoil):
    from vat.data.sets.digits import Digits

    load = Digits.load

    def spoiled(self):
        x, y, split = load(self)
        if spoil == "labels":
            y[17] = 10
        else:
            x[17, 0, 3, 3] = math.nan
        return x, y, split

    monkeypatch.setattr(Digits, "load", spoiled)
    words = ["0..9", "got 10 in row 17", "class_names"] if spoil == "labels" else ["row 17", "NaN", "Repair"]
    assert_refused(main, tmp_path, [], "Digits", *words)


# ---------------------------------------------------------------------------------------------------------------- seeds


def test_a_seed_determines_weights_and_metrics_to_the_bit_and_zero_is_a_seed(job, differences):
    torch.manual_seed(1)
    one = job("seed=0", name="one")
    torch.manual_seed(2)  # independent of earlier draws
    again = job("seed=0", name="again")
    default = job(name="default")
    other = job("seed=1", name="other")
    timeless = [{k: v for k, v in run.metrics.items() if k != "seconds"} for run in (one, again, default, other)]
    assert timeless[0] == timeless[1] == timeless[2] != timeless[3]
    assert differences(state(one.checkpoint), state(again.checkpoint)) == []
    changed = differences(state(one.checkpoint), state(other.checkpoint))
    assert "network.layers.0.weight" in changed
    records = [torch.load(run.checkpoint, weights_only=True)["record"]["split"] for run in (one, again, other)]
    assert records[0] == records[1] != records[2]


def test_metrics_are_written_as_returned(job):
    run = job()
    assert json.loads((run.folder / "metrics.json").read_text()) == run.metrics
    assert {"val/accuracy", "test/accuracy", "test/lds", "seconds"} <= run.metrics.keys()


def test_mistakes_are_counted_by_the_names_of_the_classes(job):
    ran = job("data=moons", "model=mlp", "optimizer.lr=0")
    header, *rows = [line.split(",") for line in (ran.folder / "confusion.csv").read_text().splitlines()]
    assert header == ["class", "class 0", "class 1"]
    counts = {name: list(map(int, row)) for name, *row in rows}
    assert {name: sum(row) for name, row in counts.items()} == {"class 0": 500, "class 1": 500}
    right = counts["class 0"][0] + counts["class 1"][1]
    assert right / 1000 == pytest.approx(ran.metrics["test/accuracy"])


def test_names_in_brackets_are_printed_unchanged(capsys):
    parts = dict.fromkeys(("labeled", "unlabeled", "validation", "test"), 3)
    record = {"class_names": ["[bold]", "[/cat]"], "parts": parts, "config": {"test": "last"}}
    report.closing({"seconds": 1.0}, Path("[raw]"), record, lds="", counts=torch.tensor([[2, 1], [1, 2]]))
    said = capsys.readouterr().out
    assert "[bold] for [/cat] 33.3 %" in said
    assert "[raw]/metrics.json" in said


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([[6, 2, 0], [0, 9, 1], [0, 0, 4]], "cat for dog 25.0 %, dog for emu 10.0 %"),
        ([[6, 0, 0], [0, 9, 0], [0, 0, 4]], "none"),
        ([[1, 1, 1], [5, 1, 4], [9, 0, 4]], "emu for cat 69.2 %, dog for cat 50.0 %, dog for emu 40.0 %"),
    ],
)
def test_the_commonest_mistakes_are_said_in_words(counts, said):
    from vat.runs import report

    assert report._mistakes(torch.tensor(counts), ["cat", "dog", "emu"]) == said


@pytest.mark.parametrize("steps", [3, 7])
def test_the_tested_weights_are_validated_and_saved_where_steps_are_no_multiple_of_an_epoch(job, steps):
    from vat.data.sets.digits import Digits

    run = job(f"trainer.max_steps={steps}")
    from vat.runs import records

    data = Digits()
    data.setup()
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    assert checkpoint["global_step"] == steps
    rows = data.split.test
    accuracy = (records.load_network(run.checkpoint)(data.x[rows]).argmax(1) == data.y[rows]).double().mean().item()
    assert run.metrics["test/accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert "val/accuracy" in run.metrics


def test_fewer_steps_than_an_epoch_come_to_an_end_on_the_command_line(main, tmp_path):
    main("trainer.max_steps=3")
    (metrics,) = tmp_path.glob("outputs/*/*/metrics.json")
    assert "val/accuracy" in json.loads(metrics.read_text())


# ------------------------------------------------------------------------------------------------------------- restarts


class KilledError(Exception):
    pass


@pytest.fixture
def kill():
    """Let a run die in a micro-step."""
    whole = Classifier.training_step

    def run(job, micro_step, *overrides, name):
        def dying(self, batch, batch_idx):
            if batch.micro_step == micro_step:
                raise KilledError
            return whole(self, batch, batch_idx)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Classifier, "training_step", dying)
            with pytest.raises((KilledError, SystemExit)):
                job(*overrides, name=name)

    return run


TEN = ["trainer.max_steps=10"]
RESTARTS = {
    "vat": [],
    "whitening": ["model=whitened_cnn", "model.widths=[8,8]", "optimizer=adamw_linear"],
    "in the middle of an epoch": ["trainer.val_check_interval=3"],
    "accumulation": ["trainer.accumulate_grad_batches=2", "trainer.max_steps=6"],
    "accumulation, even": ["trainer.accumulate_grad_batches=2", "data.steps_per_epoch=6", "trainer.max_steps=6"],
    "mean teacher": ["regularizer=mean_teacher", "mean_teacher.ramp_up=7"],
    "ema, statistics": ["ema=0.9", "reestimate_batch_norm=true"],
    "views": ["regularizer=pi_model", "data.translate=1"],
    "adversarial, sgd": ["regularizer=adversarial", "optimizer=sgd", "optimizer.lr=0.1"],
    "supervised": ["data.num_labeled=null"],
    "best": ["test=best"],
    "photographs": [
        *("data=cifar10", "data.num_labeled=20", "data.num_validation=20", "data.batch_size_labeled=4", "data.batch_size_unlabeled=6"),
        *("model=conv_small", "model.width=4", "regularizer=vat_entropy", "vat.eps_start=1", "vat.eps_steps=8"),
        *("optimizer=adam_linear", "ema=0.9", "test=none"),
    ],
}


@pytest.mark.parametrize("overrides", RESTARTS.values(), ids=RESTARTS)
@pytest.mark.filterwarnings("ignore:.*examples of CIFAR10 instead")
def test_a_killed_run_resumes_to_the_same_weights(job, kill, differences, overrides, tmp_path, monkeypatch):
    if "data=cifar10" in overrides:
        official.write_cifar10(tmp_path)
        monkeypatch.setenv("VAT_DATA_DIR", str(tmp_path))
    whole = job(*TEN, *overrides, name="whole")
    kill(job, 7, *TEN, *overrides, name="dead")
    last = whole.folder.parent / "dead" / "checkpoints" / "last.ckpt"
    assert 0 < torch.load(last, weights_only=True)["global_step"] < 7
    resumed = job(*TEN, *overrides, f"ckpt_path={last}", name="resumed")
    one, other = (torch.load(run.checkpoint, weights_only=True) for run in (whole, resumed))
    assert one["global_step"] == other["global_step"]
    for key in ("state_dict", "current_model_state"):
        assert (key in one) == (key in other) == (key == "state_dict" or "ema" in " ".join(overrides) or "mean" in str(overrides))
        if key in one:
            assert differences(one[key], other[key]) == []
    assert {k: v for k, v in whole.metrics.items() if k != "seconds"} == {k: v for k, v in resumed.metrics.items() if k != "seconds"}


def test_the_last_weights_are_saved_though_they_are_not_the_best(job, kill, monkeypatch):
    from vat.lightning.classifier import Classifier

    accuracies = iter([0.9, 0.5, 0.4])
    end = Classifier.on_validation_epoch_end

    def worse_and_worse(self):
        end(self)
        self.log("val/accuracy", next(accuracies))

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", worse_and_worse)
    kill(job, 12, "trainer.max_steps=15", name="dead")
    folder = Path("dead") / "checkpoints"
    steps = {path.name: torch.load(path, weights_only=True)["global_step"] for path in folder.iterdir()}
    assert steps == {"last.ckpt": 10, "previous.ckpt": 5, "best.ckpt": 5}


@pytest.mark.parametrize("moved", [True, False], ids=["moved", "elsewhere"])
def test_the_best_of_a_run_is_known_if_it_resumes_in_another_folder(job, kill, monkeypatch, tmp_path, moved):
    from vat.lightning.classifier import Classifier

    added = chain([1.0], repeat(0.0))
    end = Classifier.on_validation_epoch_end

    def of_which_the_first_is_best(self):
        end(self)
        self.log("val/accuracy", next(added))  # Lightning takes the mean

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", of_which_the_first_is_best)
    kill(job, 12, "trainer.max_steps=15", "test=best", name="dead")
    name = "moved" if moved else "elsewhere"
    if moved:
        (tmp_path / "dead").rename(tmp_path / name)
    last = tmp_path / (name if moved else "dead") / "checkpoints" / "last.ckpt"
    resumed = job("trainer.max_steps=15", "test=best", f"ckpt_path={last}", name=name)
    assert torch.load(resumed.folder / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 5
    backup = tmp_path / "backup.ckpt"
    backup.write_bytes(resumed.checkpoint.read_bytes())
    job("trainer.max_steps=15", "test=best", f"ckpt_path={backup}", name=name)  # into the run's own folder, where its best stays
    assert torch.load(resumed.folder / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 5
    last.with_name("best.ckpt").unlink()
    with pytest.raises(ValueError, match=r"test=best needs best\.ckpt of the run to resume"):
        job("trainer.max_steps=15", "test=best", f"ckpt_path={last}", name="later")


def test_a_run_that_resumes_with_other_settings_warns(job):
    one = job(name="one")
    with pytest.warns(UserWarning, match=r"with other settings than .*last\.ckpt: .*vat\.eps 2\.0 -> 0\.5") as said:
        job("vat.eps=0.5", "trainer.precision=bf16-mixed", f"ckpt_path={one.checkpoint}", name="other")
    assert any("trainer.precision None -> bf16-mixed" in str(warning.message) for warning in said)
    with warnings.catch_warnings(record=True) as said:
        job("trainer.enable_model_summary=true", f"ckpt_path={one.checkpoint}", name="same")
    assert not any("other settings" in str(warning.message) for warning in said)
    with pytest.raises(ValueError, match=r"was trained with ema=None, here it is 0\.9"):
        job("ema=0.9", f"ckpt_path={one.checkpoint}", name="averaged")


def test_a_run_begins_without_the_results_of_another(job, tmp_path):
    old = [tmp_path / "job" / name for name in ("figures/plane.png", "confusion.csv", "checkpoints/best.ckpt")]
    for path in old:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    job("test=none", "trainer.max_steps=3")
    assert not any(path.exists() for path in old)


def test_a_run_that_ends_early_says_that_its_schedule_did_not(job, monkeypatch):
    step = Classifier.training_step

    def last(self, batch, batch_idx):
        self.trainer.should_stop = self.global_step >= 2
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", last)
    with pytest.warns(UserWarning, match="the run ended after 3 of 5 steps, before the end of the learning rate"):
        job("test=none")


@pytest.mark.parametrize("overrides", [[], ["ema=0.5"], ["reestimate_batch_norm=true"]], ids=" ".join)
def test_the_best_weights_are_those_of_both_the_validation_and_the_test(job, monkeypatch, overrides):
    from vat.lightning.classifier import Classifier

    accuracies = []
    end = Classifier.on_validation_epoch_end

    def noted(self):
        end(self)
        accuracies.append(float(self.trainer.callback_metrics["val/accuracy"]))
        if len(accuracies) == 3:
            self.log("val/accuracy", 0.0)  # the last, which must not be the best

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", noted)
    found = job("trainer.max_steps=15", "optimizer.lr=0.05", "test=best", *overrides)
    best = accuracies[:2].index(max(accuracies[:2]))
    assert torch.load(found.folder / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 5 * (best + 1)
    assert found.metrics["val/accuracy"] == pytest.approx(accuracies[best])
    assert "checkpoints/best.ckpt" in (page := (found.folder / "index.html").read_text())
    assert "checkpoints/last.ckpt" not in page
    assert len(accuracies) == 4
    assert accuracies[2] != accuracies[3]


@pytest.mark.parametrize("overrides", [[], ["ema=0.5"]], ids=["plain", "ema"])
def test_a_finished_run_can_be_resumed(job, main, differences, overrides):
    one = job(*overrides, name="one")
    again = job(*overrides, f"ckpt_path={one.checkpoint}", name="again")
    assert {k: v for k, v in again.metrics.items() if k != "seconds"} == {k: v for k, v in one.metrics.items() if k != "seconds"}
    for key in ["state_dict", *(["current_model_state"] if overrides else [])]:
        assert differences(state(one.checkpoint, key), state(again.checkpoint, key)) == []
    main(*overrides, f"ckpt_path={one.checkpoint}")


def test_last_is_the_newest_checkpoint_of_the_same_settings(compose, tmp_path, monkeypatch):
    from vat.runs import folders

    monkeypatch.chdir(tmp_path)
    cfg, other = compose("ckpt_path=last"), compose("ckpt_path=last", "vat.eps=1.0")
    assert folders.settings_digest(cfg) != folders.settings_digest(other)
    assert folders.settings_digest(cfg) == folders.settings_digest(compose("logger=none"))

    def left(day, settings, age):
        path = Path("outputs") / day / f"12-00-00-{folders.settings_digest(settings)}" / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        torch.save({"record": {}, "state_dict": {}, "global_step": 1}, path)
        os.utime(path.parent, (1e9 - age, 1e9 - age))
        return path

    left("2026-01-01", cfg, 300)
    newest = left("2026-01-02", cfg, 100)
    left("2026-01-03", cfg, 200)
    left("2026-01-04", other, 0)
    assert folders.find_checkpoint(cfg) == newest
    assert folders.find_checkpoint(compose()) is None
    with pytest.raises(FileNotFoundError, match="no run with these settings"):
        folders.find_checkpoint(compose("ckpt_path=last", "vat.eps=3.0"))


def test_last_resumes_a_killed_run_of_the_command_line(main, kill, job, tmp_path, differences):
    whole = job(*TEN, "test=none")
    kill(lambda *overrides, name: main(*overrides), 7, *TEN, "test=none", name="")
    (dead,) = tmp_path.glob("outputs/*/*/checkpoints/last.ckpt")
    assert torch.load(dead, weights_only=True)["global_step"] == 5
    main(*TEN, "test=none", "ckpt_path=last")
    newest = max(tmp_path.glob("outputs/*/*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    assert torch.load(newest, weights_only=True)["global_step"] == 10
    assert differences(state(newest), state(whole.checkpoint)) == []


def test_two_jobs_do_not_share_a_folder(job, no_training, tmp_path):
    import fcntl

    (tmp_path / "job").mkdir()
    with (tmp_path / "job" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"another job runs in .*job.*set hydra\.run\.dir="):
            job()


# --------------------------------------------------------------------------------------------------------- command line


def stamps(folder):
    """When each file of each job was written. The files of the sweep's summary are written each time."""
    jobs = [path.parent for path in folder.glob("*/metrics.json")]
    return {path: path.stat().st_mtime_ns for job in jobs for path in job.rglob("*") if path.is_file()}


def test_a_sweep_has_a_folder_for_each_job_and_repeats_no_finished_job(main, tmp_path):
    main("-m", "seed=0,1", "test=none")
    folders = sorted(path.parent for path in tmp_path.glob("multirun/*/metrics.json"))
    assert len(folders) == 2
    seeds = {torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["record"]["config"]["seed"] for f in folders}
    assert seeds == {0, 1}
    before = {path: stamp for path, stamp in stamps(tmp_path / "multirun").items() if ".hydra" not in path.parts}
    main("-m", "seed=0,1", "test=none")
    after = {path: stamp for path, stamp in stamps(tmp_path / "multirun").items() if ".hydra" not in path.parts}
    assert after == before
    main("-m", "seed=0,1,2", "test=none")
    assert len(list(tmp_path.glob("multirun/*/metrics.json"))) == 3


def test_a_killed_job_of_a_sweep_resumes(main, kill, job, tmp_path, differences, monkeypatch):
    whole = job(*TEN, "test=none")
    kill(lambda *overrides, name: main(*overrides), 7, "-m", *TEN, "seed=0", "test=none", name="")
    assert not list(tmp_path.glob("multirun/*/metrics.json"))
    trained = count_training_steps(monkeypatch)
    main("-m", *TEN, "seed=0", "test=none")
    assert len(trained) == 5
    (done,) = tmp_path.glob("multirun/*/metrics.json")
    assert differences(state(done.parent / "checkpoints" / "last.ckpt"), state(whole.checkpoint)) == []


def test_a_job_of_a_sweep_whose_checkpoint_is_damaged_resumes_from_the_previous_one(main, kill, job, tmp_path, monkeypatch, differences):
    whole = job(*TEN, "test=none")
    kill(lambda *overrides, name: main(*overrides), 7, "-m", *TEN, "seed=0", "test=none", name="")
    (last,) = tmp_path.glob("multirun/*/checkpoints/last.ckpt")
    last.write_bytes(last.read_bytes()[:-1000])
    trained = count_training_steps(monkeypatch)
    with pytest.warns(UserWarning, match="using an earlier checkpoint if there is one: .*last.ckpt cannot be read"):
        main("-m", *TEN, "seed=0", "test=none")
    assert len(trained) == 10  # from the checkpoint of the start
    assert differences(state(last), state(whole.checkpoint)) == []


def count_training_steps(monkeypatch):
    trained, training_step = [], Classifier.training_step
    monkeypatch.setattr(Classifier, "training_step", lambda *args: trained.append(1) or training_step(*args))
    return trained


def test_a_mistake_ends_the_process_with_status_one_and_one_line(shell, tmp_path):
    done = shell(SCRIPT, "vat.eps=-1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "error: eps must be a finite number >= 0, got -1.0"
    assert not list(tmp_path.rglob("*.ckpt"))


def test_the_folder_of_a_run_is_the_same_a_second_later(main, monkeypatch):
    import time

    from hydra.core.hydra_config import HydraConfig

    from vat.runs import training

    found = []

    def asking(cfg, folder, start):
        time.sleep(1.1)
        found.extend([folder, Path(HydraConfig.get().run.dir)])  # as a launcher of further processes does
        return {"val/accuracy": 1.0}

    monkeypatch.setattr(training, "train", asking)
    main()
    assert found[0] == found[1]


def test_two_processes_train_as_one_and_write_one_result(shell, tmp_path, job):
    quick = ["trainer.max_steps=5", "data.steps_per_epoch=5", "trainer.enable_progress_bar=false"]
    smooth = ["model=mlp", "model.hidden=[16]", "model.batch_norm=false", "vat.direction=exact", "data.batch_size_labeled=31"]
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "logger=csv"]
    two += ["hydra.run.dir=outputs/today/job"]  # fixed until the test above passes without its mark: two folders hang
    done = shell(SCRIPT, *quick, *smooth, *two)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "outputs"]
    (folder,) = tmp_path.glob("outputs/*/*")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert done.stdout.count("test accuracy") == 1
    one = job(*smooth, "trainer.log_every_n_steps=1")
    # float32, five updates of Adam, which divides by the root of a mean square: 100 times the dtype's resolution.
    for name, value in state(folder / "checkpoints" / "last.ckpt").items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, state(one.checkpoint)[name], rtol=1e-3, atol=2e-5)
    for name in ("val/accuracy", "val/cross_entropy", "test/accuracy", "test/cross_entropy", "test/calibration_error"):
        assert metrics[name] == pytest.approx(one.metrics[name], rel=1e-3, abs=2e-3)


def test_the_best_weights_of_a_run_that_ends_before_a_validation_are_refused(job):
    with pytest.raises(ValueError, match=r"test=best with trainer\.max_steps=3: the run ends before its first validation"):
        job("test=best", "trainer.max_steps=3")
