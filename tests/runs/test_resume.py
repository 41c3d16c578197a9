"""A killed and resumed run is bit-identical to a run that was never killed. The kills are real: forks of this process die."""

import csv
import errno
import gzip
import hashlib
import json
import math
import os
import random
import resource
import shutil
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import official
import pytest
import torch
from forks import die, ended, forked, leaves
from pytorch_lightning.loggers import CSVLogger

from vat.lightning import loggers
from vat.lightning.classifier import Classifier
from vat.runs import checkpoints, report

SETTINGS = [
    "data.translate=1",  # augmentation
    "model.channels=[8]",  # with dropout, and batch norm
    "trainer.accumulate_grad_batches=2",
    "trainer.gradient_clip_val=1.0",
    "regularizers=[${vat},{_target_:vat.MeanTeacher,weight:3.0,ramp_up:7}]",  # one with a schedule, one with a state
    "vat.direction=finite_difference",  # so that the validation on a full disk is a new best
    "vat.eps_start=1.0",
    "vat.eps_steps=5",
    "ema=0.9",
    "data.steps_per_epoch=6",
    "trainer.max_steps=9",  # 18 batches, 3 epochs
    "trainer.log_every_n_steps=1",
    "logger=csv",
    "test=best",
    "trainer.val_check_interval=3",  # also in the middle of an accumulation
]
MICRO_STEPS, ORDER = 18, "order.txt"


def record(patch=setattr):
    """Note each batch that is trained on, with a digest of its rows and augmented pixels."""
    whole = Classifier.training_step

    def training_step(self, batch, batch_idx):
        digest = hashlib.sha256()
        for part in (batch.labeled, batch.unlabeled):
            for tensor in (part.index, part.x, part.view):
                digest.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())
        with open(ORDER, "a") as file:
            file.write(f"{batch.micro_step} {digest.hexdigest()}\n")
        return whole(self, batch, batch_idx)

    patch(Classifier, "training_step", training_step)


def at_batch(number, strike=die):
    """Strike in this batch, before its update."""

    def lie_in_wait():
        whole = Classifier.training_step

        def training_step(self, batch, batch_idx):
            if batch.micro_step == number:
                strike()
            return whole(self, batch, batch_idx)

        Classifier.training_step = training_step

    return lie_in_wait


def in_writing(number):
    """Die with the file of the n-th checkpoint half written."""
    left = iter(range(number))

    def fsync(descriptor):
        if next(left, None) is None:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            die()

    return lambda: setattr(os, "fsync", fsync)


def before_renaming(number, name):
    """Die before the n-th file gets this name."""
    left, replace = iter(range(number)), os.replace

    def dying(source, target):
        if Path(target).name == name and next(left, None) is None:
            die()
        replace(source, target)

    return lambda: setattr(os, "replace", dying)


def in_calling(owner, name):
    return lambda: setattr(owner, name, die)


def attempt(main, strike, *overrides):
    """Start a run, or resume it if it has left files, and let `strike` happen to it."""
    saved = list(Path().glob("outputs/*/*/checkpoints/*.ckpt"))

    def job():
        record()
        strike()
        main(*SETTINGS, *overrides, *(["ckpt_path=last"] if saved else []))

    return forked(job)


def unharmed():
    pass


def result(folder):
    """All results of a run: the values of its checkpoint except names of folders and times, metrics, confusion, logged values and order."""
    (run,) = (path.parent for path in folder.glob("outputs/*/*/metrics.json"))  # a run that died before its first checkpoint left a folder
    saved = dict(leaves(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)))
    saved = {path: value for path, value in saved.items() if path[-1] != "ckpt_path" and not str(value).startswith("/")}
    saved = {path: value for path, value in saved.items() if "best_k_models" not in path and path[-1] != "seconds"}  # its key is a path
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["seconds"]
    (path,) = run.glob("metrics*.csv")
    logged = list(csv.DictReader(path.open()))
    order = {}
    for line in (folder / ORDER).read_text().splitlines():
        number, digest = line.split()
        assert order.setdefault(int(number), digest) == digest
    return saved, metrics, (run / "confusion.csv").read_text(), logged, order


def assert_same(one, other):
    (saved, *rest), (expected, *expected_rest) = one, other
    assert saved.keys() == expected.keys()
    kinds = {path[0] for path in saved}
    assert {"state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "loops"} <= kinds
    different = [
        path
        for path, value in saved.items()
        if not (torch.equal(value, expected[path]) if isinstance(value, torch.Tensor) else value == expected[path])
    ]
    assert different == []
    for found, known in zip(rest, expected_rest, strict=True):
        if isinstance(found, dict):
            assert {key: (found.get(key), known.get(key)) for key in found.keys() | known.keys() if found.get(key) != known.get(key)} == {}
        assert found == known


@pytest.fixture
def whole(main, tmp_path, monkeypatch, known=[]):  # noqa: B006  # trained once for all tests
    """The results of a run without any fault, and then an empty folder."""
    if not known:
        folder = tmp_path / "whole"
        folder.mkdir()
        monkeypatch.chdir(folder)
        with monkeypatch.context() as patch:  # in this process, so that the forks need not import anything
            record(patch.setattr)
            main(*SETTINGS)
        known.append(result(folder))
        assert sorted(known[0][-1]) == list(range(MICRO_STEPS))
    other = tmp_path / "killed"
    other.mkdir()
    monkeypatch.chdir(other)
    return known[0]


def test_a_run_killed_again_and_again_is_the_run_never_killed(main, whole):
    strikes = [
        at_batch(0),
        at_batch(1),  # in the middle of the first accumulation
        in_writing(0),  # of the best, at the first validation
        in_writing(1),  # and of the last
        at_batch(7),
        before_renaming(0, "previous.ckpt"),
        before_renaming(0, "last.ckpt"),  # there is no last.ckpt now
        at_batch(13),
        at_batch(MICRO_STEPS - 1),
        in_calling(Classifier, "test_step"),
        in_calling(report, "write_page"),  # before the metrics are written
    ]
    for strike in strikes:
        assert ended(attempt(main, strike)) == -signal.SIGKILL
    assert ended(attempt(main, unharmed)) == 0
    assert_same(result(Path.cwd()), whole)
    assert not list(Path().rglob("*.part"))


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:-50_000] + bytes(50_000)])
def test_a_damaged_checkpoint_is_skipped_for_the_previous_one(main, whole, spoil):
    assert ended(attempt(main, at_batch(13))) == -signal.SIGKILL
    (last,) = Path().glob("outputs/*/*/checkpoints/last.ckpt")
    last.write_bytes(spoil(last.read_bytes()))
    assert ended(attempt(main, unharmed)) == 0
    assert_same(result(Path.cwd()), whole)


SLURM = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


def test_a_run_told_to_end_saves_the_step_it_is_at(main, whole, monkeypatch):
    told = [
        (2, signal.SIGTERM, {}),  # in the middle of an accumulation
        (5, signal.SIGTERM, {}),  # a validation is due after it
        (8, signal.SIGUSR1, SLURM),
        (13, signal.SIGTERM, SLURM),
        (MICRO_STEPS - 1, signal.SIGTERM, {}),
    ]
    for batch, number, environment in told:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            ending = at_batch(batch, lambda number=number: os.kill(os.getpid(), number))
            assert ended(attempt(main, ending)) == 128 + signal.SIGTERM
        (last,) = Path().glob("outputs/*/*/checkpoints/last.ckpt")
        assert checkpoints.read_checkpoint(last)["global_step"] == batch // 2 + 1
    assert ended(attempt(main, unharmed)) == 0
    assert_same(result(Path.cwd()), whole)


def test_ctrl_c_ends_a_run_in_a_line_that_says_how_to_resume(main, whole, capfd):
    def press():  # Python's handler; a shell may make its background processes ignore the signal
        raise KeyboardInterrupt

    assert ended(attempt(main, at_batch(13, press))) == 128 + signal.SIGINT
    assert capfd.readouterr().err.splitlines()[-1].startswith("interrupted. To resume")
    assert ended(attempt(main, unharmed)) == 0
    assert_same(result(Path.cwd()), whole)


# ------------------------------------------------------------------------------------------------------- other faults


def limit_files():
    """Let no file grow beyond some bytes from now on, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def fail_to_log():
    def save(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    CSVLogger.save = save


def fill_memory():
    torch.empty(2**50)


def spoil_batch():
    whole = Classifier.terms

    def terms(self, batch, report=None):
        return whole(self, batch._replace(labeled=batch.labeled._replace(x=batch.labeled.x * math.nan)), report)

    Classifier.terms = terms


FAULTS = {
    "disk full": (limit_files, ["best.ckpt cannot be written (File too large)", "ckpt_path=last then resumes"]),
    "disk full for the logs": (fail_to_log, ["No space left on device"]),
    "out of memory": (fill_memory, ["out of memory. Lower data.batch_size_unlabeled and data.batch_size_labeled"]),
    "NaN": (
        spoil_batch,
        ["the loss is not finite at optimizer step 3", "cross_entropy = nan", "last.ckpt). Or start again with a lower learning rate"],
    ),
}


def test_a_fault_ends_the_run_with_one_line_and_a_checkpoint_to_resume_from(main, whole, capfd):
    for batch, (name, (strike, words)) in zip((6, 6, 7, 7), FAULTS.items(), strict=True):
        capfd.readouterr()
        assert ended(attempt(main, at_batch(batch, strike))) == 1, name
        said = capfd.readouterr().out.splitlines()[-1]
        assert said.startswith("error: "), (name, said)
        for word in words:
            assert word in said, name
    assert ended(attempt(main, unharmed)) == 0
    assert_same(result(Path.cwd()), whole)


def test_a_clock_that_goes_backwards_changes_nothing(main, whole):
    def back():
        time.time = lambda: 1e9

    assert ended(attempt(main, at_batch(7, back))) == 0
    assert_same(result(Path.cwd()), whole)
    (run,) = Path().glob("outputs/*/*")
    assert 0 < json.loads((run / "metrics.json").read_text())["seconds"] < 600
    for age, name in enumerate(("previous.ckpt", "last.ckpt")):  # by its date, the last one is older
        os.utime(run / "checkpoints" / name, (1e9 - age, 1e9 - age))
    assert checkpoints.newest_whole(run).name == "last.ckpt"


def kill_wandb():
    """Kill W&B's own process, a child of this one."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        name, after = stat.read_text().split("(", 1)[1].rsplit(")", 1)
        if "wandb" in name and int(after.split()[1]) == os.getpid():
            os.kill(int(stat.parent.name), signal.SIGKILL)
            (Path.cwd() / "wandb-was-killed").touch()


@pytest.mark.long  # W&B is slow to start and end
def test_a_run_continues_if_wandb_dies_and_resumes_the_same_wandb_run(main, whole):
    online = [setting for setting in SETTINGS if not setting.startswith("logger=")] + ["logger=wandb"]

    def job(strike, *overrides):
        def run():
            strike()
            main(*online, *overrides)

        return ended(forked(run))

    assert job(at_batch(7, kill_wandb)) == 0
    assert Path("wandb-was-killed").exists()
    (run,) = Path().glob("outputs/*/*")
    metrics = json.loads((run / "metrics.json").read_text())
    assert {name: value for name, value in metrics.items() if name != "seconds"} == whole[1]
    shutil.rmtree("outputs")
    assert job(at_batch(7)) == -signal.SIGKILL
    assert job(unharmed, "ckpt_path=last") == 0
    (run,) = Path().glob("outputs/*/*")
    identities = {path.name.rsplit("-", 1)[1] for path in run.glob("wandb/offline-run-*-*")}
    assert identities == {(run / "wandb_run_id").read_text()}
    assert len(list(run.glob("wandb/offline-run-*-*"))) == 2


class Server(BaseHTTPRequestHandler):
    """The part of W&B's server that a run uses. Once the file `cut` exists, every connection breaks."""

    cut: ClassVar = Path("cut")
    heard: ClassVar[list] = []
    answers: ClassVar[dict] = {
        "viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
        "upsertBucket": {"bucket": {"id": "b", "name": "r", "project": {"id": "p", "name": "vat", "entity": {"id": "e", "name": "me"}}}},
        "createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []},
        "model": {"bucket": None},
    }

    def answer(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.cut.exists():
            self.close_connection = True
            return
        self.heard.append((self.path, content))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": self.answers} if self.path.endswith("graphql") else {}).encode())

    do_GET = do_POST = answer  # noqa: N815  # as http.server calls them

    def log_message(self, *_):
        pass


@pytest.mark.long
def test_a_run_continues_if_the_connection_of_an_online_wandb_run_fails(main, whole, monkeypatch):
    monkeypatch.setattr(Server, "cut", Path.cwd() / "cut")
    monkeypatch.setattr(loggers, "FINISH_WITHIN", 5)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in {"WANDB_BASE_URL": address, "WANDB_API_KEY": "k" * 40, "no_proxy": "*"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_MODE")
    online = [setting for setting in SETTINGS if not setting.startswith("logger=")] + ["logger=wandb"]

    def job():
        at_batch(7, Server.cut.touch)()
        main(*online)

    began = time.monotonic()
    assert ended(forked(job)) == 0
    assert time.monotonic() - began < 120
    server.shutdown()
    assert any(b"upsertBucket" in content for _, content in Server.heard)  # it was online
    (run,) = Path().glob("outputs/*/*")
    metrics = json.loads((run / "metrics.json").read_text())
    assert {name: value for name, value in metrics.items() if name != "seconds"} == whole[1]
    assert list(run.glob("wandb/run-*/*.wandb"))  # what `wandb sync` sends later


def test_data_that_changed_since_are_noticed(main, tmp_path, monkeypatch):
    official.write_cifar10(tmp_path)
    monkeypatch.setenv("VAT_DATA_DIR", str(tmp_path))
    small = ["data=cifar10", "data.num_labeled=20", "data.num_validation=20", "data.batch_size_labeled=4", "data.batch_size_unlabeled=6"]
    small += ["model=mlp", "model.hidden=[4]", "test=none"]
    with pytest.warns(UserWarning, match="the published"):
        main(*small)
    archive = tmp_path / "cifar-10-binary.tar.gz"
    content = bytearray(gzip.decompress(archive.read_bytes()))
    content[5000] ^= 1  # a pixel
    whole = archive.read_bytes()
    archive.write_bytes(gzip.compress(bytes(content)))
    with pytest.warns(UserWarning, match="the published"), pytest.raises(SystemExit, match=r"last\.ckpt was trained on other data"):
        main(*small, "ckpt_path=last")
    archive.write_bytes(whole[:-1000])
    with pytest.raises(SystemExit, match=r"cifar-10-binary\.tar\.gz .*(ends too early|cannot be read)"):
        main(*small, "ckpt_path=last")


@pytest.mark.long
def test_fifty_kills_at_random_times(main, whole, tmp_path, monkeypatch, record_property):
    draw, kills, finished = random.Random(0), 0, 0
    while kills < 50 or finished < 3:
        folder = tmp_path / str(finished)
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        child = attempt(main, unharmed)
        time.sleep(draw.uniform(0, 2.5))
        os.kill(child, signal.SIGKILL)  # or what is left of it
        if (status := ended(child)) == 0:
            assert_same(result(folder), whole)
            finished += 1
        else:
            assert status == -signal.SIGKILL
            kills += 1
    record_property("kills at random times", kills)
    record_property("runs that came to their end between them", finished)


def test_a_loader_that_is_made_again_for_each_epoch_continues_the_order(main, whole):
    def job():
        record()
        main(*SETTINGS, "trainer.reload_dataloaders_every_n_epochs=1")

    assert ended(forked(job)) == 0
    assert result(Path.cwd())[-1] == whole[-1]
    shutil.rmtree("outputs")
    Path(ORDER).unlink()
    assert ended(attempt(main, at_batch(13), "trainer.reload_dataloaders_every_n_epochs=1")) == -signal.SIGKILL
    assert ended(attempt(main, unharmed, "trainer.reload_dataloaders_every_n_epochs=1")) == 0
    assert result(Path.cwd())[-1] == whole[-1]
