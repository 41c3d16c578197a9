import contextlib
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import wandb
from pytorch_lightning.utilities.exceptions import SIGTERMException

from vat.lightning import loggers


@pytest.fixture
def account(monkeypatch):
    """A fake account: `set(key=..., reach=..., login=...)` returns a list that records the requests."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=SimpleNamespace(base_url="https://host")))
    asked = []

    def set_up(*, key, answer=None, login=None):
        if key:
            monkeypatch.setenv("WANDB_API_KEY", "k" * 40)

        def urlopen(url, timeout):
            asked.append(("reach", url, timeout))
            if isinstance(answer, Exception):
                raise answer
            return SimpleNamespace(close=lambda: None)

        def log_in(**options):
            asked.append(("login", options))
            assert options["prompt"] is False, "it may not ask"
            if isinstance(login, Exception):
                raise login
            return bool(key)

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        monkeypatch.setattr(wandb, "login", log_in)
        return asked

    return set_up


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_wandb_mode_decides_without_requests_if_it_is_set(account, monkeypatch, mode):
    asked = account(key=True)
    monkeypatch.setenv("WANDB_MODE", mode)
    assert loggers.wandb_mode() == (mode, "set by WANDB_MODE")
    assert asked == []


def test_without_a_key_it_is_offline_and_no_server_is_called(account):
    asked = account(key=False)
    mode, reason = loggers.wandb_mode()
    assert mode == "offline"
    assert "no key" in reason
    assert "wandb login" in reason
    assert [kind for kind, *_ in asked] == ["login"]
    assert asked[0][1]["verify"] is False


def test_with_a_key_and_a_server_it_is_online(account):
    asked = account(key=True)
    assert loggers.wandb_mode() == ("online", "https://host")
    assert [kind for kind, *_ in asked] == ["reach", "login"]
    assert 0 < asked[0][2] <= 10
    assert 0 < asked[1][1]["timeout"] <= 10


def test_any_answer_of_the_server_is_enough(account):
    account(key=True, answer=urllib.error.HTTPError("https://host", 404, "not here", {}, None))
    assert loggers.wandb_mode()[0] == "online"


@pytest.mark.parametrize("answer", [urllib.error.URLError("no route"), TimeoutError("late"), ConnectionResetError(), ValueError("bad url")])
def test_without_a_network_it_is_offline_and_says_why(account, answer):
    asked = account(key=True, answer=answer)
    mode, reason = loggers.wandb_mode()
    assert mode == "offline"
    assert "https://host" in reason
    assert type(answer).__name__ in reason
    assert [kind for kind, *_ in asked] == ["reach"]


@pytest.mark.parametrize("login", [wandb.errors.AuthenticationError("revoked"), wandb.errors.UsageError("no tty")])
def test_with_a_key_that_is_refused_it_is_offline_and_says_why(account, login):
    account(key=True, login=login)
    mode, reason = loggers.wandb_mode()
    assert mode == "offline"
    assert type(login).__name__ in reason


def made(monkeypatch, folder, mode, **options):
    received = {"defined": {}}
    run = SimpleNamespace(define_metric=lambda metric, **how: received["defined"].update({metric: how}))

    def logger(**options):
        received.update(options)
        return SimpleNamespace(experiment=run)

    monkeypatch.setattr(loggers, "wandb_mode", lambda: (mode, "the test says so"))
    monkeypatch.setattr(loggers, "LenientWandbLogger", logger)
    loggers.wandb_logger(save_dir=str(folder), **options)
    return received


def test_metrics_are_over_optimizer_steps_with_their_best_and_last(monkeypatch, tmp_path):
    defined = made(monkeypatch, tmp_path, "offline")["defined"]
    assert {how["step_metric"] for how in defined.values()} == {"trainer/global_step"}
    assert defined["val/accuracy"]["summary"] == "max,last"
    assert defined["val/cross_entropy"]["summary"] == "min,last"
    assert "val/error" not in defined  # a plain number: a sweep minimises it


@pytest.mark.parametrize("offline", [True, False])
def test_checkpoints_are_uploaded_as_one_artifact_where_online(tmp_path, offline):
    for name in ("best.ckpt", "last.ckpt"):
        (tmp_path / name).write_text(name)
    logged = []
    run = SimpleNamespace(id="abc", offline=offline, disabled=False, log_artifact=logged.append)
    loggers.upload_checkpoints(run, tmp_path, {"val/accuracy": 0.5})
    assert len(logged) == (0 if offline else 1)
    for artifact in logged:
        assert (artifact.name, artifact.type, artifact.metadata) == ("model-abc", "model", {"val/accuracy": 0.5})
        assert set(artifact.manifest.entries) == {"best.ckpt", "last.ckpt"}


def test_a_run_that_ended_before_its_first_validation_uploads_only_the_last_checkpoint(tmp_path):
    (tmp_path / "last.ckpt").write_text("last")
    logged = []
    run = SimpleNamespace(id="abc", offline=False, disabled=False, log_artifact=logged.append)
    loggers.upload_checkpoints(run, tmp_path, {})
    assert [set(artifact.manifest.entries) for artifact in logged] == [{"last.ckpt"}]


def test_a_network_that_fails_later_costs_only_the_upload(tmp_path):
    for name in ("best.ckpt", "last.ckpt"):
        (tmp_path / name).write_text(name)

    def log_artifact(artifact):
        raise wandb.errors.AuthenticationError("no answer")

    run = SimpleNamespace(id="abc", offline=False, disabled=False, log_artifact=log_artifact)
    with pytest.warns(UserWarning, match=rf"could not store the checkpoints \(AuthenticationError\): they are in {tmp_path}"):
        loggers.upload_checkpoints(run, tmp_path, {})


def test_a_run_is_named_after_its_folder_and_a_restart_resumes_it(monkeypatch, tmp_path):
    one = made(monkeypatch, tmp_path / "job", "online")
    again = made(monkeypatch, tmp_path / "job", "online")
    other = made(monkeypatch, tmp_path / "other", "online")
    assert one["name"] == "job"
    assert one["id"] == again["id"] != other["id"]
    assert one["resume"] == "allow"


def test_an_offline_run_uploads_no_model_and_asks_for_no_resumption(monkeypatch, tmp_path):
    received = made(monkeypatch, tmp_path, "offline", name="mine", tags=["a"], group="g", project="p")
    assert received["resume"] is None
    assert received["log_model"] is False
    assert [received[key] for key in ("name", "tags", "group", "project")] == ["mine", ["a"], "g", "p"]


def test_the_choice_is_logged_in_one_line(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(loggers.log, "disabled", False)  # Hydra disables loggers that existed before its configuration
    with caplog.at_level("INFO", logger="vat.lightning.loggers"):
        made(monkeypatch, tmp_path, "offline")
    (line,) = [record.getMessage() for record in caplog.records]
    assert "offline" in line
    assert "the test says so" in line


CHOICE = """
import json, time
import wandb  # slow on a busy machine
from vat.lightning import loggers
loggers.ANSWER_WITHIN = 2
began = time.perf_counter()
mode, reason = loggers.wandb_mode()
print(json.dumps([mode, reason, time.perf_counter() - began]))
"""


def test_a_key_and_a_server_that_never_answers_are_offline_within_seconds(shell, tmp_path):
    script = tmp_path / "choice.py"
    script.write_text(CHOICE)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts the connection and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = shell(script, WANDB_API_KEY="k" * 40, WANDB_BASE_URL=url)
    assert done.returncode == 0, done.stderr
    mode, reason, seconds = json.loads(done.stdout.splitlines()[-1])
    assert mode == "offline"
    assert url in reason
    assert seconds < 10


def written(run_file):
    """Records of an offline run, read by wandb's reader."""
    reader = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run_file)]
    printed = subprocess.run(reader, capture_output=True, text=True, timeout=300, check=True).stdout
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def test_the_command_line_with_no_key_and_no_terminal_trains_offline_and_leaves_a_run(shell, tmp_path):
    script = Path(__file__).parents[2] / "src" / "train.py"
    quick = ("trainer.max_steps=5", "data.steps_per_epoch=5", "trainer.enable_progress_bar=false")
    done = shell(script, *quick, "trainer.log_every_n_steps=1", "test=none")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "offline (no key is set" in done.stdout + done.stderr
    (run_file,) = tmp_path.glob("outputs/*/*/wandb/offline-run-*/*.wandb")
    records = written(run_file)
    logged = [record["history"]["item"] for record in records if record["type"] == "history"]
    losses = [row["train/loss"] for row in logged if "train/loss" in row]
    assert len(losses) == 5
    assert all(loss > 0 for loss in losses)
    folder = run_file.parents[2]
    assert json.loads((folder / "metrics.json").read_text())["val/accuracy"] in [row.get("val/accuracy") for row in logged]
    assert (folder / "checkpoints" / "last.ckpt").exists()
    said = json.dumps(records)
    record = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["record"]
    for origin in (record["split"], record["environment"]["git"], record["environment"]["python"]):
        assert origin in said
    pictures = {path.stem.split("_")[0] for path in run_file.parent.glob("files/media/images/figures/*.png")}
    assert pictures >= {"perturbations", "confusion", "reliability", "kl", "class", "curves"}
    assert '"val/error"' in said


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (None, 0),
        (FloatingPointError("NaN"), 1),
        (OSError("disk full"), 1),
        (KeyboardInterrupt(), 1),
        (SystemExit(1), 1),
        (SIGTERMException(), 1),
    ],
)
def test_a_failed_run_is_a_failure_in_wandb(monkeypatch, end, code):
    codes = []
    monkeypatch.setattr(wandb, "finish", codes.append)
    with contextlib.suppress(BaseException), loggers.finishing_wandb():
        if end is not None:
            raise end
    assert codes == [code]


def test_a_failed_job_of_a_sweep_is_a_failure_in_its_wandb_run_and_the_next_one_is_not(shell, tmp_path):
    script = Path(__file__).parents[2] / "src" / "train.py"
    quick = ("data=moons", "model=mlp", "model.hidden=[4]", "trainer.max_steps=5", "data.steps_per_epoch=5", "figures=null", "test=none")
    rates = "optimizer.lr=1e30,1e-3"  # the first job ends in NaN
    done = shell(script, "-m", *quick, "trainer.enable_progress_bar=false", rates)
    assert done.returncode == 1
    codes = {}
    for run_file in tmp_path.glob("multirun/*/wandb/offline-run-*/*.wandb"):
        (ended,) = [record["exit"] for record in written(run_file) if record["type"] == "exit"]
        codes["metrics.json" in os.listdir(run_file.parents[2])] = ended.get("exit_code", 0)
    assert codes == {False: 1, True: 0}
