"""Workers of a sweep that was killed."""

import os
import signal
import time

from forks import ended, forked

from vat.runs import processes


def test_a_worker_whose_sweep_is_killed_ends_after_what_it_is_doing(tmp_path, monkeypatch):
    """The sweep is a fork, and the worker is a fork of it. The worker's job handles the first signal, as a training does."""
    monkeypatch.setattr(processes.multiprocessing.current_process(), "_name", "LokyProcess-1")

    def worker():
        signal.signal(signal.SIGTERM, lambda *_: (tmp_path / "told").touch() or signal.signal(signal.SIGTERM, signal.SIG_DFL))
        processes.end_with_parent(every=0.05)
        processes.end_with_parent(every=0.05)  # for the next job
        (tmp_path / "worker").write_text(str(os.getpid()))
        while True:
            time.sleep(0.05)

    def sweep():
        forked(worker)
        while not (tmp_path / "worker").exists() or not (tmp_path / "worker").read_text():
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(forked(sweep)) == -signal.SIGKILL
    number = int((tmp_path / "worker").read_text())
    for _ in range(400):
        if not alive(number):
            break
        time.sleep(0.05)
    assert not alive(number)
    assert (tmp_path / "told").exists()


def alive(number):
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
