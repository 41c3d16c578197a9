"""Several processes: the port by which they meet, and workers whose sweep was killed."""

import multiprocessing
import os
import signal
import socket
import threading
import time

from omegaconf import DictConfig


def refuse_port_in_use(cfg: DictConfig) -> None:
    """Refuse a `MASTER_PORT` that another program holds: this process would fail, and those that it starts wait for ever.

    Raises:
        ValueError: names the port.
    """
    port = os.environ.get("MASTER_PORT", "")
    starts_others = (cfg.trainer.devices != 1 or cfg.trainer.num_nodes != 1) and "LOCAL_RANK" not in os.environ
    if not (starts_others and port.isdecimal()):
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except (OSError, OverflowError) as error:
            raise ValueError(f"MASTER_PORT={port} cannot be used ({error}): unset it, or name a free port") from error


def end_with_parent(every: float = 1.0) -> None:
    """In a launcher's worker: end this process when the sweep that started it is gone. Its job saves first.

    Args:
        every: seconds between two looks.
    """
    parent = os.getppid()
    if multiprocessing.current_process().name == "MainProcess" or any(t.name == WATCH for t in threading.enumerate()):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        while True:  # the first signal ends the job, and a later one the worker that waits for the next job
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5 * every)

    threading.Thread(target=watch, name=WATCH, daemon=True).start()


WATCH = "vat-parent-watch"
