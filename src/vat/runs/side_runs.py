"""Runs beside the training itself, as pilots and folds: short of words, kept in a folder of their own, and resumed by the same command."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from vat.runs import folders, report, resume
from vat.runs.checkpoints import newest_whole

Train = Callable[[DictConfig, Path, Path | None], dict[str, float]]


def refuse_several_devices(cfg: DictConfig, setting: str) -> None:
    """Refuse a job of several processes, each of which would start all runs.

    Raises:
        ValueError: If there is more than one device or node.
    """
    if cfg.trainer.devices != 1 or cfg.trainer.num_nodes != 1:
        raise ValueError(f"{setting} runs on one device: set trainer.devices=1 and trainer.num_nodes=1")


def aside(cfg: DictConfig) -> DictConfig:
    """A copy of a configuration for a run that tests, logs and draws nothing."""
    job = cfg.copy()
    job.choose_eps, job.test, job.figures, job.ckpt_path = False, "none", None, None
    job.logger = {"_target_": None}
    job.trainer.enable_progress_bar = False
    return job


def trained(jobs: Mapping[str, DictConfig], folder: Path, *, train: Train, description: str) -> dict[str, dict[str, float]]:
    """Train what is not done yet, and show a bar.

    Args:
        jobs: Configurations by the names of their folders.
        folder: For all of them.
        train: Trains one.
        description: What the bar says.

    Returns:
        The metrics of each.
    """
    metrics = {}
    bar = Console(quiet=report.console.quiet, width=report.console.width)
    for name, job in track(jobs.items(), description=description, console=bar):
        resume.refuse_other_job(job, folder / name)
        found = folders.finished(folder / name)
        if found is None:
            with silence():
                found = train(job, folder / name, newest_whole(folder / name))
        metrics[name] = found
    return metrics


@contextmanager
def silence() -> Iterator[None]:
    """Within it nothing is printed: numbers of such a run are not those of the training."""
    was, level = report.console.quiet, logging.root.manager.disable
    try:
        report.console.quiet = True
        logging.disable(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        report.console.quiet = was
        logging.disable(level)
