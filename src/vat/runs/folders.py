"""A job's folder: its name, its files, and who may write into it."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback as HydraCallback
from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vat import files
from vat.lightning.csv_logger import LOGGED
from vat.runs import default_eps, schedules
from vat.runs.checkpoints import newest_whole
from vat.runs.user_errors import readable_errors

BYSTANDERS = ("hydra", "ckpt_path", "logger", "figures", "keep_freed_memory", "allow_targets")
"""Keys that do not change what a job computes."""

OUTPUTS = Path("outputs")

CONFIG, ENVIRONMENT, METRICS = "config.yaml", "environment.json", "metrics.json"
"""metrics.json is written last, so a folder with it is done."""


def register() -> None:
    """Make `${settings_digest:}`, `${run_folder:…}`, `${default_eps:…}`, `${times:…}` and `${share:…}` known to configurations."""
    OmegaConf.register_new_resolver("default_eps", default_eps.default_eps, replace=True)
    OmegaConf.register_new_resolver("times", lambda factor, value: factor * value, replace=True)
    OmegaConf.register_new_resolver("share", schedules.share, replace=True)
    OmegaConf.register_new_resolver("settings_digest", _digest_for_hydra, replace=True)
    OmegaConf.register_new_resolver("run_folder", lambda fresh, *, _root_: run_folder(fresh, _root_), replace=True)


def _digest_for_hydra(*, _root_: DictConfig) -> str:
    with readable_errors():  # Hydra calls this before the job begins, to name the folder
        return settings_digest(_root_)


def settings_digest(cfg: DictConfig) -> str:
    """A digest of eight hexadecimal digits of the settings that a job's result depends on."""
    settings = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in BYSTANDERS])
    plain = OmegaConf.to_container(settings, resolve=True)
    return digest(plain)


def digest(settings: Any) -> str:
    """A digest of eight hexadecimal digits of settings in plain values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def finished(folder: Path) -> dict[str, float] | None:
    """The metrics of the finished job in `folder`, or None. A sweep that is started again skips finished jobs."""
    found = files.read_json(folder / METRICS)
    return found if isinstance(found, dict) else None


def of_this_version(metrics: Mapping[str, float]) -> bool:
    """Whether a job's metrics have a validation accuracy, or say that there is no validation part."""
    return "val/accuracy" in metrics or metrics.get("val/examples") == 0


@contextmanager
def writable(folder: Path, key: str) -> Iterator[None]:
    """Create the folder that the setting `key` names. Name the setting if this or a later write within the context fails.

    Raises:
        OSError: If the folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OSError(f"the output folder {folder} cannot be written ({error.strerror}): set {key}=...") from error


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Create the job's folder and lock it, so that no two jobs write into one folder.

    Raises:
        OSError: If it cannot be written, or another job has locked it.
    """
    with writable(folder, "hydra.run.dir"):
        (folder / "checkpoints").mkdir(exist_ok=True)
        lock = files.open_lock(folder / ".lock")
    with lock:
        if getattr(rank_zero_only, "rank", 0) == 0:  # the other ranks of a job share its folder
            if not files.lock(lock):
                raise OSError(f"another job runs in {folder}: wait for it, or set hydra.run.dir=...")
            for place in (folder, folder / "checkpoints"):
                files.remove_parts(place)
        yield


@rank_zero_only
def keep_logged(folder: Path) -> None:
    """Rename the metrics.csv of another run, or of an earlier version. metrics.1.csv is the oldest."""
    logged = folder / LOGGED
    if logged.is_file():
        os.replace(logged, folder / f"metrics.{len(list(folder.glob('metrics.*.csv'))) + 1}.csv")


def settings_in(folder: Path) -> DictConfig | None:
    """The settings of the job that began in `folder`. None if there is none or the file is incomplete."""
    try:
        found = OmegaConf.load(folder / CONFIG)
    except (FileNotFoundError, ValueError, YAMLError, OmegaConfBaseException):  # ValueError: bytes that are not text
        return None
    return found if isinstance(found, DictConfig) and "trainer" in found else None


def find_checkpoint(cfg: DictConfig) -> Path | None:
    """The checkpoint that a job resumes from: none, a named file, or the newest of the same settings.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if cfg.ckpt_path is None:
        return None
    if cfg.ckpt_path == "last":
        newest = _newest_checkpoint(cfg)
        if newest is None:
            raise FileNotFoundError(
                f"ckpt_path=last: no run with these settings has left a checkpoint under {OUTPUTS}/ (settings "
                f"{settings_digest(cfg)}): start one without ckpt_path, or name a file"
            )
        return newest
    return existing(cfg.ckpt_path)


def existing(path: str | Path, key: str = "ckpt_path") -> Path:
    """The path of a file that the setting `key` names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the value is not a path.
    """
    found = files.as_path(path, key)
    if found.is_dir():
        inside = next((file for file in (found / "checkpoints" / "last.ckpt", found / "last.ckpt") if file.is_file()), None)
        raise FileNotFoundError(f"{key}={path} is a folder. Name a file" + (f" such as {key}={inside}" if inside else ""))
    if not found.is_file():
        raise FileNotFoundError(f"{key}={path}: there is no such file")
    return found


def run_folder(fresh: str, cfg: DictConfig) -> str:
    """The `fresh` folder or, with `ckpt_path=last`, that of the run to resume."""
    newest = _newest_checkpoint(cfg) if cfg.ckpt_path == "last" else None
    return fresh if newest is None else str(newest.parent.parent)


def _newest_checkpoint(cfg: DictConfig) -> Path | None:
    """The last whole checkpoint of the newest run of these settings that has one."""
    found = OUTPUTS.glob(f"*/*-{settings_digest(cfg)}/checkpoints")
    # Unfinished runs come first: clocks of machines differ, and a finished run has nothing left to train.
    newest_first = sorted(found, key=lambda path: (finished(path.parent) is None, path.stat().st_mtime), reverse=True)
    return next(filter(None, (newest_whole(path.parent) for path in newest_first)), None)


class WritableFolder(HydraCallback):
    """Reports a folder that cannot be written, in one line, before Hydra fails to create it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with readable_errors(), claimed(Path(config.hydra.run.dir)):
            pass

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        with readable_errors(), writable(folder, "hydra.sweep.dir"), tempfile.TemporaryFile(dir=folder):
            pass
