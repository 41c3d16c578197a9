"""The W&B logger that never asks, hangs or fails for want of an account or a network."""

import logging
import os
import secrets
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pytorch_lightning.loggers import WandbLogger

from vat import files

if TYPE_CHECKING:
    import wandb  # its import takes as long as half of torch's: elsewhere only where a run is W&B's

log = logging.getLogger(__name__)

SUMMARIES = {
    "val/accuracy": "max,last",
    "val/cross_entropy": "min,last",
    "val/calibration_error": "min,last",
    "train/loss": "min,last",
}
"""What W&B keeps of a metric over optimizer steps; of all others the last value, a plain number, as sweeps need of `val/error`."""

ANSWER_WITHIN = 5  # seconds; wandb itself would try for a minute and a half, and then fail

FINISH_WITHIN = 600  # seconds for what is not yet sent at the end; without a network wandb itself would wait for ever


def wandb_logger(
    *,
    save_dir: str,
    project: str = "vat",
    group: str | None = None,
    name: str | None = None,
    tags: list[str] | None = None,
) -> WandbLogger:
    """A W&B run in `save_dir`: online where a key is set and the server answers, offline otherwise; a restart goes on in the same run.

    `WANDB_MODE` (online, offline, disabled) decides where it is set. The choice is logged in one line.

    Args:
        save_dir: folder of the run's files.
        project: W&B project.
        group: W&B group, for the jobs of a sweep.
        name: shown name of the run; the folder's if None.
        tags: W&B tags.
    """
    import wandb

    # Its banners and console capture would cut the progress bar to pieces.
    quiet = wandb.Settings(console="off", silent=True, finish_timeout=FINISH_WITHIN)
    wandb.setup(quiet)
    mode, reason = wandb_mode()
    log.info("Weights & Biases: %s (%s)", mode, reason)
    folder = Path(save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    logger = LenientWandbLogger(
        save_dir=folder,
        project=project,
        group=group,
        name=name or folder.name,
        tags=tags,
        id=_run_id(folder),
        resume="allow" if mode == "online" else None,
        mode=mode,
        log_model=False,  # `upload_checkpoints` stores the two that a run keeps
        settings=quiet,
    )
    for metric, summary in SUMMARIES.items():
        logger.experiment.define_metric(metric, step_metric="trainer/global_step", summary=summary)
    return logger


def upload_checkpoints(run: "wandb.Run", folder: Path, metrics: dict[str, float]) -> None:
    """Store the best and the last checkpoint as an artifact `model-ID` of an online run.

    Args:
        run: the W&B run; nothing is done where it is offline.
        folder: of the checkpoints.
        metrics: kept with the artifact.
    """
    if run.offline or run.disabled:
        return
    import wandb

    artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=metrics)
    for path in (folder / "best.ckpt", folder / "last.ckpt"):
        if path.is_file():  # none is the best before the first validation
            artifact.add_file(str(path))
    try:
        run.log_artifact(artifact)
    except Exception as error:  # of a network that has failed since, under several names
        warnings.warn(f"W&B did not take the checkpoints ({type(error).__name__}): they are in {folder}", stacklevel=2)


class LenientWandbLogger(WandbLogger):
    """Lets the run go on where W&B's own process dies."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with _warned():
            super().log_metrics(metrics, step)


@contextmanager
def finishing_wandb() -> Iterator[None]:
    """End the W&B run of the block, if there is one, as failed if the block raises; the next job of this process gets one of its own."""
    try:
        yield
    except BaseException:  # Ctrl-C and SIGTERM too
        _finish_wandb(exit_code=1)
        raise
    _finish_wandb(exit_code=0)


def _finish_wandb(exit_code: int) -> None:
    if "wandb" not in sys.modules:
        return
    import wandb

    with _warned():
        wandb.finish(exit_code)
        return
    with suppress(ConnectionError):
        wandb.teardown()


@contextmanager
def _warned() -> Iterator[None]:
    try:
        yield
    except ConnectionError as error:
        warnings.warn(
            f"W&B's own process has died ({error}): it lacks what is logged from here on; all other files are whole", stacklevel=4
        )


def wandb_mode() -> tuple[str, str]:
    """The mode to run in, and why."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode, "WANDB_MODE says so"
    import wandb

    server = wandb.setup().settings.base_url
    try:
        if not _key_is_set():
            return "offline", "no key is set; `wandb login` sets one"
        _reach(server)
        wandb.login(prompt=False, timeout=ANSWER_WITHIN)
    except Exception as error:  # whatever is wrong with an account must not stop training
        return "offline", f"{server} cannot be used: {type(error).__name__}"
    return "online", server


def _key_is_set() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    return wandb.login(prompt=False, verify=False)


def _reach(server: str) -> None:
    """Raises: OSError, where no server answers in time; any answer will do."""
    with suppress(urllib.error.HTTPError):
        urllib.request.urlopen(server, timeout=ANSWER_WITHIN).close()


def _run_id(folder: Path) -> str:
    path = folder / "wandb_run_id"
    known = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    if not known:
        known = secrets.token_hex(4)
        files.write(path, known)
    return known
