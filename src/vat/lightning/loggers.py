"""A W&B logger that works without an account and without an internet connection: it never asks, waits for ever or fails."""

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
    import wandb  # imported in functions elsewhere: its import takes half as long as torch's, and only W&B runs need it

log = logging.getLogger(__name__)

SUMMARIES = {
    "val/accuracy": "max,last",
    "val/cross_entropy": "min,last",
    "val/calibration_error": "min,last",
    "train/loss": "min,last",
}
"""Values that W&B keeps for a metric. For all other metrics it keeps the last value, a plain number. Sweeps need that for `val/error`."""

ANSWER_WITHIN = 5  # seconds; wandb's own limit is 90 seconds, and then it fails

FINISH_WITHIN = 600  # seconds to send the remaining data at the end; without a connection wandb would wait for ever


def wandb_logger(
    *,
    save_dir: str,
    project: str = "vat",
    group: str | None = None,
    name: str | None = None,
    tags: list[str] | None = None,
) -> WandbLogger:
    """Make the logger of a W&B run in `save_dir`. A restart continues the same run.

    The run is online if a key is set and the server answers, else offline. The environment variable `WANDB_MODE` (online, offline,
    disabled) overrides this. A log line states the mode.

    Args:
        save_dir: Folder of the run's files.
        project: W&B project.
        group: W&B group, for the jobs of a sweep.
        name: Shown name of the run. None: the folder's name.
        tags: W&B tags.
    """
    import wandb

    # wandb's banners and its console capture would break the progress bar.
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
        log_model=False,  # `upload_checkpoints` stores the run's two checkpoints
        settings=quiet,
    )
    for metric, summary in SUMMARIES.items():
        logger.experiment.define_metric(metric, step_metric="trainer/global_step", summary=summary)
    return logger


def upload_checkpoints(run: "wandb.Run", folder: Path, metrics: dict[str, float]) -> None:
    """Store the best and the last checkpoint as an artifact `model-ID` of an online run.

    Args:
        run: The W&B run. If it is offline, nothing is stored.
        folder: Folder of the checkpoints.
        metrics: Metrics to store with the artifact.
    """
    if run.offline or run.disabled:
        return
    import wandb

    artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=metrics)
    for path in (folder / "best.ckpt", folder / "last.ckpt"):
        if path.is_file():  # there is no best.ckpt before the first validation
            artifact.add_file(str(path))
    try:
        run.log_artifact(artifact)
    except Exception as error:  # a lost connection has several exception types
        warnings.warn(f"W&B could not store the checkpoints ({type(error).__name__}): they are in {folder}", stacklevel=2)


class LenientWandbLogger(WandbLogger):
    """W&B logger that warns if W&B's own process dies, so that the run continues."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with _warned():
            super().log_metrics(metrics, step)


@contextmanager
def finishing_wandb() -> Iterator[None]:
    """End the W&B run of the block, if there is one. It counts as failed if the block raises. The process's next job gets a new run."""
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
            f"W&B's own process has died ({error}): W&B gets no further values of this run. All other files are complete", stacklevel=4
        )


def wandb_mode() -> tuple[str, str]:
    """Choose the mode of the W&B run, with the reason."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode, "set by WANDB_MODE"
    import wandb

    server = wandb.setup().settings.base_url
    try:
        if not _key_is_set():
            return "offline", "no key is set; `wandb login` sets one"
        _reach(server)
        wandb.login(prompt=False, timeout=ANSWER_WITHIN)
    except Exception as error:  # any kind: a problem with an account must not stop training
        return "offline", f"{server} cannot be used: {type(error).__name__}"
    return "online", server


def _key_is_set() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    return wandb.login(prompt=False, verify=False)


def _reach(server: str) -> None:
    """Check that the server answers. Any answer is enough.

    Raises:
        OSError: If no server answers in time.
    """
    with suppress(urllib.error.HTTPError):
        urllib.request.urlopen(server, timeout=ANSWER_WITHIN).close()


def _run_id(folder: Path) -> str:
    path = folder / "wandb_run_id"
    known = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    if not known:
        known = secrets.token_hex(4)
        files.write(path, known)
    return known
