"""Several processes: check their common port, and end workers whose sweep was killed."""

import multiprocessing
import os
import signal
import socket
import threading
import time

from omegaconf import DictConfig


def refuse_port_in_use(cfg: DictConfig) -> None:
    """Refuse a `MASTER_PORT` that another program uses. This process would fail, and the processes that it started would wait forever.

    Raises:
        ValueError: If the port is in use.
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
            raise ValueError(f"MASTER_PORT={port} cannot be used ({error}). Unset it, or set a free port.") from error


def end_with_parent(every: float = 1.0) -> None:
    """End this process when the sweep that started it has ended. Its job saves first. This has an effect only in a launcher's worker.

    Args:
        every: Seconds between two checks.
    """
    parent = os.getppid()
    if multiprocessing.current_process().name == "MainProcess" or any(t.name == WATCH for t in threading.enumerate()):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        while True:  # the first signal ends the job, and a later one ends the worker, which waits for the next job
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5 * every)

    threading.Thread(target=watch, name=WATCH, daemon=True).start()


WATCH = "vat-parent-watch"
