"""Sweeps by `python src/train.py -m …`: jobs that neither stop nor spoil one another, and one summary at the end."""

import copyreg
import dataclasses
import hashlib
import json
import logging
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback as HydraCallback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from pytorch_lightning.utilities.exceptions import SIGTERMException

from vat import files
from vat.runs import folders, processes, resume, user_errors
from vat.runs.checkpoints import newest_whole
from vat.runs.overrides import quoted
from vat.runs.sweep_summary import ERROR, enlisted, summarise

log = logging.getLogger(__name__)

NAME = "VAT_SWEEP"
"""Environment variable that tells a job which sweep it belongs to; its W&B group."""

SOURCE = Path(__file__).parents[2]
"""Where the commands are."""


UNLISTED: list[str] = []
"""The failed jobs of this process that no file tells of, as the disk was full."""

Train = Callable[[DictConfig, Path, Path | None], dict[str, float]]

# Here: a launcher's worker imports this module, to unpickle the callback, and never runs train.py's body.
folders.register()
# It sends the schema's dataclasses to and fro by value, where a copy of this mark would not be the mark any more.
copyreg.pickle(type(dataclasses.MISSING), lambda _: "MISSING")


def job(cfg: DictConfig, folder: Path, train: Train) -> float:
    """One job of a sweep: what is done is not done again, what was interrupted goes on, what fails is left to the summary.

    A job of several processes gets a process of its own, which starts the others: they would repeat the command line, and by that
    of a sweep each would train other settings.

    Returns:
        The validation error, which a sampling sweeper minimises; NaN if the job failed or has no validation part.
    """
    overrides = list(HydraConfig.get().overrides.task)
    processes.end_with_parent()
    listed = False
    try:
        _enlist(overrides, folder)
        listed = True
        (folder / ERROR).unlink(missing_ok=True)
        resume.refuse_other_job(cfg, folder)
        metrics = folders.finished(folder)
        if metrics is None:
            start = newest_whole(folder) or folders.find_checkpoint(cfg)
            several = cfg.trainer.devices != 1 or cfg.trainer.num_nodes != 1
            metrics = _in_own_process(overrides, folder, start) if several else train(cfg, folder, start)
        if not folders.of_this_version(metrics):
            raise ValueError(f"{folder / folders.METRICS} is of another version of this project: delete {folder} to train it anew")
    except Exception as error:
        said = user_errors.readable(error).splitlines()[0]
        try:
            files.write(folder / ERROR, f"{said}\n\n{traceback.format_exc()}")
        except OSError:  # the disk is full: the sweep goes on, and its end says which job failed
            listed = False
        if not listed:
            UNLISTED.append(f"{folder}: failed: {said}")
        log.error("failed: %s (%s)", said, folder / ERROR)
        return math.nan
    return 1 - metrics.get("val/accuracy", math.nan)


def command(overrides: Iterable[str], folder: Path, start: Path | None = None) -> list[str]:
    """The command of a single run in `folder`, which goes on from the checkpoint `start`."""
    words = [*(word for word in overrides if not word.startswith("sweep=")), f"hydra.run.dir={quoted(folder)}"]
    words += [] if start is None else [f"ckpt_path={quoted(start)}"]
    return [sys.executable, str(SOURCE / "train.py"), *words]


def _in_own_process(overrides: Sequence[str], folder: Path, start: Path | None) -> dict[str, float]:
    about_the_sweep = (
        "hydra.mode",
        "hydra.run",
        "hydra.sweep",
        "hydra.launcher",
        "hydra/sweeper",
        "hydra/launcher",
        "hydra.job",
        "+hydra.job",
    )
    of_hydra = [word for word in HydraConfig.get().overrides.hydra if not word.startswith(about_the_sweep)]
    process = subprocess.Popen(command([*overrides, *of_hydra], folder, start), stderr=subprocess.PIPE, text=True)
    with process, _passing_on_sigterm(process) as passed_on:
        _, errors = process.communicate()
    sys.stderr.write(errors)
    if passed_on:
        raise SIGTERMException
    metrics = folders.finished(folder)
    if process.returncode or metrics is None:
        lines = [line for line in errors.splitlines() if line.strip()] or ["it left no metrics"]
        said = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[-1])
        raise RuntimeError(f"{said} (status {process.returncode})")
    return metrics


@contextmanager
def _passing_on_sigterm(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """Within it SIGTERM goes to `process` in place of this one; the list holds those that came."""
    came: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        came.append(number)
        process.terminate()

    if threading.current_thread() is not threading.main_thread():  # a launcher's, which no signal reaches
        yield came
        return
    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)


class Sweep(HydraCallback):
    """Names a sweep, so that its jobs find together, and sums it up at its end."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Hand the sweep's name on to its jobs.

        Raises:
            SystemExit: several grids of conf/sweep are asked for at once, of which a job would know nothing.
        """
        UNLISTED.clear()
        for word in config.hydra.overrides.task:
            if word.startswith("sweep=") and re.search(r"[,(]", word):
                raise SystemExit(f"error: {word}: one sweep at a time; run them one after the other")
        with read_write(config), open_dict(config):
            config.hydra.overrides.hydra.append(f"+hydra.job.env_set.{NAME}={_name(config)}")
        source = str(SOURCE)  # a launcher's worker is no `python src/train.py`
        # The working directory is where one's own modules are, and comes last: hydra_plugins/working_directory.py
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")]), os.getcwd()])

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print and write the summary.

        Raises:
            SystemExit: no job was started, or one failed.
        """
        folder = Path(config.hydra.sweep.dir) / _name(config)
        try:
            jobs = enlisted(folder)
            if not jobs and not UNLISTED:
                raise SystemExit(f"error: the sweep is empty: {' '.join(config.hydra.overrides.task) or 'nothing'} leads to no job")
            summarise(jobs, folder, said=_said(config))
        except Exception as error:  # Hydra would make a warning of it
            raise SystemExit(f"error: the sweep has no summary: {error!r}") from error
        missing = [j for j in jobs if j.metrics is None]
        if missing or UNLISTED:
            said = "; ".join([f"{len(missing)} of {len(jobs)} jobs have no result", *UNLISTED])
            raise SystemExit(f"error: {said}; the same command tries them again")


def _enlist(overrides: Sequence[str], folder: Path) -> None:
    sweep = os.environ.get(NAME)
    if sweep is None:  # the callback was taken out
        return
    deciding = _deciding(overrides)
    listed = Path(HydraConfig.get().sweep.dir) / sweep / "jobs" / f"{digest(deciding)}.json"
    listed.parent.mkdir(parents=True, exist_ok=True)
    settings = dict(word.lstrip("+").split("=", 1) for word in deciding if "=" in word)
    settings = {key: value for key, value in settings.items() if key.split(".")[0] != "sweep"}
    noted = {"settings": settings, "folder": os.path.relpath(folder, listed.parent)}
    if files.read_json(listed) != noted:
        files.write_json(listed, noted)


def _name(config: DictConfig) -> str:
    """The name of a sweep: what is swept, and a digest of it, so that the same command goes on with the same sweep."""
    words = _deciding(config.hydra.overrides.task)
    swept = [o.get_key_element() for o in OverridesParser.create().parse_overrides(words) if o.is_sweep_override()]
    grids = OmegaConf.to_container(config.hydra.sweeper)
    label = "-".join([*filter(None, [config.hydra.runtime.choices.get("sweep")]), *swept]) or "sweep"
    return f"{''.join(c if c.isalnum() or c in '-._' else '_' for c in label)[:60]}-{digest([*words, json.dumps(grids)])}"


def _deciding(overrides: Iterable[str]) -> list[str]:
    """Those on which a job's result depends."""
    return [word for word in overrides if word.lstrip("+").split("=")[0].split(".")[0] not in folders.BYSTANDERS]


def _said(config: DictConfig) -> str:
    return shlex.join(["python", "src/train.py", "-m", *config.hydra.overrides.task])


def digest(words: Iterable[str]) -> str:
    """Eight hexadecimal digits that follow from overrides, in whatever order they are given."""
    return hashlib.sha256("\n".join(sorted(words)).encode()).hexdigest()[:8]
