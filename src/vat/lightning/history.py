"""The course of a run, as lines of JSON in its folder: for those without an account, and for a search that stops hopeless runs."""

import json
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

HISTORY = "history.jsonl"


class History(pl.Callback):
    """Appends the metrics of each validation during training, with the latest ones of training, and logs `val/error`, also of the last.

    `val/error` is a plain number in W&B, where a sweep can minimise it; `val/accuracy` has its best and its last.

    Args:
        path: of the file. A run that goes on keeps what was before the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            kept = [record for record in read(self.path) if record["step"] <= trainer.global_step]
            self.path.write_text("".join(json.dumps(record) + "\n" for record in kept))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        error = 1 - float(trainer.callback_metrics["val/accuracy"])
        for logger in trainer.loggers:
            logger.log_metrics({"val/error": error}, step=trainer.global_step)
        if trainer.state.fn != TrainerFn.FITTING:
            return
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": trainer.global_step, "val/error": error, **found}) + "\n")


def read(path: Path) -> list[dict[str, float]]:
    """The records of a history, the first first; a last line that is still being written is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
