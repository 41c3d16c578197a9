"""The history of a run as lines of JSON in its folder. It needs no account, and a search reads it to stop hopeless runs."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from vat import files
from vat.lightning import csv_logger
from vat.lightning.csv_logger import LOGGED, ResumableCSVLogger

HISTORY = "history.jsonl"

COUNTS, SECONDS = "logged", "seconds"
"""Keys in a checkpoint: number of records of each file at the time of the checkpoint; among these, the seconds of the run until then."""


class History(pl.Callback):
    """Write the metrics of each validation during training, with the latest training metrics, and log `val/error` at every validation.

    A record also has the seconds of the run until then. `val/error` is a plain number in W&B, so that a sweep can minimise it.
    `val/accuracy` has a best and a last value there. A checkpoint holds the number of records before it. `rewind` then drops the records of
    steps that a resumed run repeats.

    Args:
        path: Path of the file.
        clock: Returns the seconds of the run until now, with those before it was interrupted.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.path = path
        self.clock = clock

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        error = 1 - float(trainer.callback_metrics["val/accuracy"])
        for logger in trainer.loggers:
            logger.log_metrics({"val/error": error}, step=trainer.global_step)
        if trainer.state.fn != TrainerFn.FITTING:
            return
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        record = {"step": trainer.global_step, "seconds": self.clock(), "val/error": error, **found}
        _write(self.path, [*read(self.path), record])

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            counts = {HISTORY: len(read(self.path)), SECONDS: self.clock()}
            for logger in trainer.loggers:
                if isinstance(logger, ResumableCSVLogger):
                    counts[LOGGED] = logger.num_rows
            checkpoint[COUNTS] = counts


def seconds_of(checkpoint: Mapping[str, Any]) -> float:
    """The seconds of a run until a checkpoint; 0 for older checkpoints, which do not hold them."""
    return checkpoint.get(COUNTS, {}).get(SECONDS, 0.0)


def rewind(folder: Path, checkpoint: Mapping[str, Any]) -> bool:
    """Drop the records after a run's checkpoint from `history.jsonl` and `metrics.csv`.

    Returns:
        Whether the checkpoint holds the number of rows of `metrics.csv`. Older checkpoints do not hold it.
    """
    counts = checkpoint.get(COUNTS, {})
    records = read(folder / HISTORY)
    kept = records[: counts[HISTORY]] if HISTORY in counts else [r for r in records if r["step"] <= checkpoint["global_step"]]
    if len(kept) < len(records):
        _write(folder / HISTORY, kept)
    columns, rows = csv_logger.read(folder / LOGGED)
    if LOGGED in counts and len(rows) > counts[LOGGED]:
        csv_logger.write(folder / LOGGED, columns, rows[: counts[LOGGED]])
    return LOGGED in counts


def read(path: Path) -> list[dict[str, float]]:
    """Read the records of a history in order, up to the first incomplete line."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.is_file() else []:
        try:
            record = json.loads(line if line.endswith("\n") else "")
        except ValueError:
            break
        records.append(record)
    return records


def _write(path: Path, records: Iterable[Mapping[str, float]]) -> None:
    files.write(path, "".join(json.dumps(record) + "\n" for record in records))
