"""Callbacks that save a run: at the start, after every validation, at the end and at a signal."""

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Checkpoint, EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from vat.runs.checkpoints import BEST, PREVIOUS, STATE_OF_BEST


class SaveBest(ModelCheckpoint):
    """Keeps the checkpoint with the best validation in `folder`. A resumed run keeps that of the run before, if it is there.

    Lightning's own forgets the best if the folder has changed, even if only its name has.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            filename=Path(BEST).stem,
            monitor="val/accuracy",
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=False,  # at the end of the validation instead, before `SaveLast`, which records the best
        )
        self.path = Path(str(self.dirpath)) / BEST  # spelled as by Lightning, which would otherwise take it for another file and remove it

    @property
    def state_key(self) -> str:
        """The key of Lightning's own callback, which earlier checkpoints use."""
        return super().state_key.replace(type(self).__qualname__, STATE_OF_BEST, 1)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "saved_at": self._last_global_step_saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore only numbers. Lightning would also restore paths, and delete the file there after a better checkpoint."""
        known = state_dict.get("best_model_path")
        place = str(self.path) if isinstance(known, str) and known and self.path.is_file() else ""
        scores = {name: state_dict.get(name) for name in ("best_model_score", "kth_value")} if place else {}
        if state_dict.get("current_score") is not None:
            scores["current_score"] = state_dict["current_score"]
        for name, score in scores.items():
            if not isinstance(score, Tensor) or score.numel() != 1 or score.is_complex() or not score.isfinite():
                raise ValueError(f"the checkpoint to resume from is damaged: {name} is no number")
        if type(saved_at := state_dict.get("saved_at", 0)) is not int:
            raise ValueError("the checkpoint to resume from is damaged: saved_at is no number")
        self._last_global_step_saved = saved_at
        self.best_model_path = self.kth_best_model_path = place
        self.best_k_models = {place: best} if isinstance(best := scores.get("best_model_score"), Tensor) else {}
        for name, score in scores.items():
            setattr(self, name, score)


class SaveLast(Checkpoint):
    """Saves a checkpoint at the start and after every validation, to resume a killed run. Must come after `SaveBest`.

    It does not save at a validation within an accumulation, because a checkpoint does not hold accumulated gradients.

    Attributes:
        last_model_path: Path of the last save.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last_model_path = ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        previous = self.path.with_name(PREVIOUS)
        if trainer.ckpt_path is None:
            self._save(trainer)
            if trainer.is_global_zero:
                previous.unlink(missing_ok=True)  # of an earlier run in this folder
            return
        self.last_model_path = str(trainer.ckpt_path)
        if trainer.is_global_zero and Path(trainer.ckpt_path).resolve() == previous.resolve():
            self.path.unlink(missing_ok=True)  # damaged, so it must not become the previous one

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        whole = trainer.is_last_batch or (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if trainer.state.fn is TrainerFn.FITTING and not trainer.sanity_checking and whole:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not sum(trainer.num_val_batches):  # data without a validation part
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # a resumed run does not log earlier steps again
        trainer.save_checkpoint(self.path)
        self.last_model_path = str(self.path)


class SaveEnd(Callback):
    """Saves the weights of the last step if the run ended between two validations, prepared for evaluation as at a validation.

    Must come before the moving average, which then replaces the weights.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.done = True
        if not is_saved(trainer, self.path):
            averages = [callback for callback in trainer.callbacks if isinstance(callback, EMAWeightAveraging)]  # pyright: ignore[reportAttributeAccessIssue]
            for average in averages:
                average.on_validation_epoch_start(trainer, pl_module)  # replaces the weights by the average
            pl_module.on_validation_epoch_start()
            for average in averages:
                average.on_validation_epoch_end(trainer, pl_module)
            trainer.save_checkpoint(self.path)


class SaveOnSignal(Callback):
    """At SIGTERM, and at SIGUSR1 under Slurm: finish the optimizer step, save, and end. The signal may reach any rank.

    Lightning itself ends at any micro-step and saves nothing, or under Slurm saves at any point of a step.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.received = False
        self._num_updates = 0

    @staticmethod
    def signals() -> Sequence[signal.Signals]:
        """The signals that announce the end of the job."""
        of_slurm = getattr(signal, "SIGUSR1", None) if "SLURM_JOB_ID" in os.environ else None  # Windows does not know it
        return (signal.SIGTERM,) if of_slurm is None else (signal.SIGTERM, of_slurm)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._num_updates = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in self.signals():
                signal.signal(number, self._note)  # the trainer restores the former handler

    def _note(self, number: int, frame: Any) -> None:
        self.received = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > self._num_updates:  # otherwise accumulated gradients would be lost
            self._num_updates = trainer.global_step
            if trainer.strategy.reduce_boolean_decision(self.received, all=False):
                trainer._signal_connector.received_sigterm = True  # ends the run, after a validation if one is due

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and trainer.state.fn is TrainerFn.FITTING and not is_saved(trainer, self.path):
            trainer.save_checkpoint(self.path)


def is_saved(trainer: pl.Trainer, path: Path) -> bool:
    """Whether this process has read or saved this optimizer step at `path`. An earlier run's file may have the same step."""
    steps = getattr(trainer.strategy.checkpoint_io, "steps", {})
    saved = steps.get(path.resolve()) if trainer.is_global_zero and path.is_file() else None
    return trainer.strategy.broadcast(saved) == trainer.global_step  # one rank decides, because all must save or none
