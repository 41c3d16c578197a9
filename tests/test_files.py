"""A written file is complete or unchanged. Links are followed, and only regular files are replaced."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from forks import ended, forked

from vat import files

SRC = Path(__file__).parents[1] / "src"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["", "é\n", "x" * 100_000, b"\x00\xff"])
def test_a_written_file_is_complete_and_the_only_one(tmp_path, content):
    path = tmp_path / "a.txt"
    for before in (None, "before"):
        if before is not None:
            path.write_text(before)
        files.write(path, content)
        assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("there", [True, False])
def test_a_kill_or_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch, call, there):
    path = tmp_path / "a.json"
    if there:
        files.write_json(path, {"a": 1})

    def killed():
        monkeypatch.setattr(os, call, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        files.write_json(path, {"a": 2})

    assert ended(forked(killed)) == -signal.SIGKILL
    assert files.read_json(path) == ({"a": 1} if there else None)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"):
            files.write_json(path, {"a": 2})
    assert files.read_json(path) == ({"a": 1} if there else None)
    files.write_json(path, {"a": 3})
    assert files.read_json(path) == {"a": 3}
    assert names(tmp_path) == ["a.json"]  # the partial file of the killed process is gone, too


@pytest.mark.parametrize("torn", ["", " ", '{"a": 1', "{'a'", "\x00\x00"])
def test_an_empty_or_incomplete_file_counts_as_absent(tmp_path, torn):
    (tmp_path / "a.json").write_text(torn)
    assert files.read_json(tmp_path / "a.json") is None


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    link.symlink_to(target)
    for content in ("first", "second"):  # a link without a target, then a link to a file
        files.write(link, content)
        assert link.is_symlink()
        assert target.read_text() == content
    assert names(tmp_path) == ["elsewhere", "link"]
    assert names(tmp_path / "elsewhere") == ["target"]


@pytest.mark.parametrize("kind", ["null", "folder", "pipe", "link to a device", "loop"])
def test_what_is_not_a_regular_file_is_refused_and_stays(tmp_path, kind):
    path = tmp_path / "a"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.symlink_to("/dev/null")
        path = Path("/dev/null") if kind == "null" else path
    before = os.lstat(path)
    for refused in (lambda: files.write(path, "x"), lambda: files.open_lock(path)):
        with pytest.raises(OSError, match=r"Not a regular file|[Tt]oo many levels|Symlink loop"):
            refused()
    assert os.lstat(path).st_mode == before.st_mode
    assert os.lstat(path).st_ino == before.st_ino


def test_the_mode_of_a_file_stays(tmp_path):
    path = tmp_path / "a"
    path.write_text("private")
    path.chmod(0o600)
    files.write(path, "x")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_lock_is_held_once_and_does_not_change_the_file(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / ".lock").symlink_to(tmp_path / "mine")
    with files.open_lock(tmp_path / ".lock") as lock, files.open_lock(tmp_path / ".lock") as other:
        assert files.lock(lock)
        assert not files.lock(other)
    with files.open_lock(tmp_path / ".lock") as other:
        assert files.lock(other, wait=True)
    assert (tmp_path / "mine").read_text() == "precious"


WINDOWS = """
import os, signal, sys
import hydra, matplotlib.pyplot, PIL.Image, pytorch_lightning, rich, torch, torchmetrics, wandb  # these work without fcntl
import hydra._internal.hydra, pytorch_lightning.loggers, torch.optim.swa_utils
sys.modules["fcntl"] = None  # its import fails, as on Windows
del os.sysconf, os.killpg, signal.SIGUSR1
locked = []
class msvcrt:
    LK_NBLCK = 2
    @staticmethod
    def locking(number, mode, count):
        name = os.readlink(f"/proc/self/fd/{number}")
        if name in locked:
            raise PermissionError
        locked.append(name)
sys.modules["msvcrt"] = msvcrt
import train, evaluate, export, predict
from vat import files
from vat.data.files.npz import refuse_beyond_memory
from vat.runs.saving import SaveOnSignal
with files.open_lock(files.Path("lock")) as one, files.open_lock(files.Path("lock")) as other:
    assert files.lock(one) and not files.lock(other)
refuse_beyond_memory(1, "x")
os.environ["SLURM_JOB_ID"] = "1"
print(*SaveOnSignal.signals())
"""


def test_every_command_can_be_imported_without_fcntl(tmp_path):
    command = [sys.executable, "-c", WINDOWS]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SRC)})
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "15"


def test_json_files_can_be_read_with_json(tmp_path):
    files.write_json(tmp_path / "a.json", {"é": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"é": [1, 2.5, None]}
