"""A run's checkpoints: written whole or not at all, read without executing anything, and saved before a run is told to end."""

import io
import os
import pickletools
import shutil
import signal
import threading
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import Callback, Checkpoint, EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from vat import files
from vat.runs.renames import renamed

STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool", "ComplexDouble", "ComplexFloat")
NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch Size",
    *(f"torch {kind}Storage" for kind in STORAGES),
}
"""What a pickle may name. torch's own list is longer: `bytearray(28_000_000_000)` is among what it allows."""

DEEPEST = 50
"""Of dictionaries and lists within one another; a run's go down to 8."""

MOST_TUPLES = 100_000
"""Four for each tensor. A million of them in one another as a key of a dictionary overflow Python's stack."""

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
STATE_OF_BEST = ModelCheckpoint.__qualname__


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors and plain values; nothing in it is executed.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is truncated, damaged or no checkpoint of this project.
    """
    with path.open("rb") as file:
        try:
            # torch reads without looking at the sums, and would inflate what is compressed: it writes nothing compressed.
            with zipfile.ZipFile(file) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("it is compressed")
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} in it is damaged")
                pickled = _pickle(archive)
            file.seek(0)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
            _refuse_larger(checkpoint, values=len(pickled), nbytes=4 * os.fstat(file.fileno()).st_size)  # tied weights are counted twice
        except Exception as error:  # the unpickler of a damaged file raises whatever it trips over
            raise ValueError(f"{path} cannot be read, it is truncated or no checkpoint: take an earlier one") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("record"), dict):
        raise ValueError(f"{path} is no checkpoint of this project: it has no record of its settings")
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise ValueError(f"{path} is no checkpoint of this project: it has no weights by name")
    callbacks = checkpoint.get("callbacks", {})
    if not isinstance(callbacks, dict) or not all(isinstance(state, dict) for state in callbacks.values()):
        raise ValueError(f"{path} is no checkpoint of this project: its callbacks have no states by name")
    if type(checkpoint.get("global_step")) is not int:
        raise ValueError(f"{path} is no checkpoint of this project: it does not say at which step it was saved")
    if (found := _first_tensor(checkpoint["record"])) is not None:
        raise ValueError(f"{path} is no checkpoint of this project: its record holds a tensor of shape {tuple(found.shape)}")
    checkpoint["record"] = renamed(checkpoint["record"])
    return checkpoint


def _pickle(archive: zipfile.ZipFile) -> bytes:
    """The one pickle of a checkpoint, which names nothing but tensors and dictionaries.

    Raises:
        ValueError: it names something else, or there are several.
    """
    names = [name.lower() for name in archive.namelist()]  # torch finds files whatever their case
    (place,) = (name for name in archive.namelist() if name.lower().endswith("data.pkl"))
    if len(set(names)) < len(names):
        raise ValueError("two files in it have one name")
    pickled = archive.read(place)
    tuples = 0
    for opcode, argument, _ in pickletools.genops(pickled):
        tuples += opcode.name.startswith("TUPLE")
        if opcode.name == "GLOBAL" and argument not in NAMES:
            raise ValueError(f"it names {argument}")
    if tuples > MOST_TUPLES:
        raise ValueError(f"it has more than {MOST_TUPLES} tuples")
    return pickled


def _refuse_larger(checkpoint: Any, *, values: int, nbytes: int) -> None:
    """Refuse what grows when it is read: containers in themselves or in one another a thousand times, tensors larger than their memory.

    Args:
        checkpoint: what was read.
        values: most values it may have, since each takes a byte of its pickle.
        nbytes: most bytes its tensors may have.

    Raises:
        ValueError: it has more, or holds something that is neither a tensor nor a plain value.
    """
    left = [(checkpoint, 0)]
    while left:
        node, depth = left.pop()
        values -= 1
        if depth > DEEPEST or values < 0:
            raise ValueError(f"its values go deeper than {DEEPEST} levels, or contain one another")
        if isinstance(node, dict | list | tuple):
            left += [(child, depth + 1) for child in (node.values() if isinstance(node, dict) else node)]
        elif isinstance(node, Tensor):
            nbytes -= node.nbytes
        elif not isinstance(node, str | int | float | complex | None):
            raise ValueError(f"it holds a {type(node).__name__}")
    if nbytes < 0:
        raise ValueError("its tensors are larger than the file")


def _first_tensor(node: Any) -> Tensor | None:
    """A tensor in plain values; None where there is none."""
    if isinstance(node, dict | list | tuple):
        return next((t for n in (node.values() if isinstance(node, dict) else node) if (t := _first_tensor(n)) is not None), None)
    return node if isinstance(node, Tensor) else None


def newest_whole(folder: Path) -> Path | None:
    """The last checkpoint of the run in `folder`, the one before it where that is damaged, or None where there is no whole one."""
    for path in (folder / "checkpoints" / name for name in (LAST, PREVIOUS)):
        if path.is_file():
            try:
                read_checkpoint(path)
            except ValueError as error:
                warnings.warn(f"going back further: {error}", stacklevel=2)
            else:
                return path
    return None


def bring_best(start: Path, saved: dict[str, Any], folder: Path, *, needed: bool) -> None:
    """Bring the best checkpoint along where a run goes on in another folder than that of the checkpoint `start`, which holds `saved`.

    Raises:
        ValueError: it is `needed`, there was one, and it is not there.
    """
    states = [state for name, state in saved.get("callbacks", {}).items() if str(name).startswith(STATE_OF_BEST)]
    known = {Path(os.path.realpath(place)) for state in states if isinstance(place := state.get("best_model_path"), str) and place}
    best, here = start.resolve().with_name(BEST), folder / BEST
    if here.resolve() in known or here.resolve() == best:  # the run's own folder, where `start` may be a copy from elsewhere
        best = here
    if needed and known and not best.is_file():
        raise ValueError(f"{start} goes on, but the best of its run, {BEST}, is not beside it: put it there, or take test=last")
    if best == here:
        return
    if best.is_file():
        rank = getattr(rank_zero_only, "rank", 0)
        partial = here.with_name(f"{BEST}.{rank}.part")  # each rank brings it: none goes on before it is there
        shutil.copyfile(best, partial)
        os.replace(partial, here)
    else:
        here.unlink(missing_ok=True)  # of another run


class WholeCheckpoints(TorchCheckpointIO):
    """Writes next to the file and then renames, so that a run killed at any time leaves whole checkpoints; keeps the last but one too.

    Lightning's own writes into the system's folder for temporary files, from where a file may have to be copied.

    Attributes:
        steps: At which optimizer step each file was saved that this process has read or written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[Path, int] = {}

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        checkpoint = super().load_checkpoint(path, *args, **kwargs)
        self.steps[Path(path).resolve()] = checkpoint["global_step"]
        return checkpoint

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        content = io.BytesIO()  # first, for torch reports a full disk as a fault of its own
        torch.save(checkpoint, content)
        keep = path.with_name(PREVIOUS) if path.name == LAST and not path.is_symlink() else None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, content.getbuffer(), keep=keep)
            self.steps[path.resolve()] = checkpoint["global_step"]
        except OSError as error:
            raise OSError(
                f"{path} cannot be written ({error.strerror}): make room or make it writable; ckpt_path=last then goes on from the "
                "checkpoint before it"
            ) from error


class SaveBest(ModelCheckpoint):
    """Keeps the checkpoint whose validation was the best, in `folder`; of a run that goes on from another, that one's where it lies there.

    Lightning's own forgets the best where the folder is not the one it was saved in, also by another name.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            filename=Path(BEST).stem,
            monitor="val/accuracy",
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=False,  # but at the end of the validation, before `SaveLast`, which is to know the best
        )
        self.path = Path(str(self.dirpath)) / BEST  # as Lightning writes it, or it would take the file for another one, and remove it

    @property
    def state_key(self) -> str:
        """That of Lightning's own, under which earlier checkpoints hold it."""
        return super().state_key.replace(type(self).__qualname__, STATE_OF_BEST, 1)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "saved_at": self._last_global_step_saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore numbers alone. Lightning would restore paths too, and delete what lies there once there is a better checkpoint."""
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
    """Saves at the start and after every validation what a killed run goes on from. It stands behind the one that keeps the best.

    A validation in the middle of an accumulation is passed over: the gradients gathered so far are in no checkpoint.

    Attributes:
        last_model_path: where it saved last.
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
            self.path.unlink(missing_ok=True)  # it is damaged, and must not replace the one before it

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        whole = trainer.is_last_batch or (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if trainer.state.fn is TrainerFn.FITTING and not trainer.sanity_checking and whole:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not sum(trainer.num_val_batches):  # data without a validation part
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # what came before the checkpoint is not logged again
        trainer.save_checkpoint(self.path)
        self.last_model_path = str(self.path)


class SaveEnd(Callback):
    """Saves the weights of the last step where the run ended between two validations, made ready for evaluation as at a validation.

    It stands before the moving average, which then takes the place of the weights.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.done = True
        if not is_saved(trainer, self.path):
            averages = [callback for callback in trainer.callbacks if isinstance(callback, EMAWeightAveraging)]  # pyright: ignore[reportAttributeAccessIssue]
            for average in averages:
                average.on_validation_epoch_start(trainer, pl_module)  # puts it in the place of the weights
            pl_module.on_validation_epoch_start()
            for average in averages:
                average.on_validation_epoch_end(trainer, pl_module)
            trainer.save_checkpoint(self.path)


class SaveOnSignal(Callback):
    """At SIGTERM, and at SIGUSR1 under Slurm: finish the optimizer step, save, and end. Any rank may have had the signal.

    Lightning's own way ends at any micro-step and saves nothing, or under Slurm saves in the middle of whatever is being done.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.received = False
        self._num_updates = 0

    @staticmethod
    def signals() -> Sequence[signal.Signals]:
        """The signals that mean: end soon."""
        of_slurm = getattr(signal, "SIGUSR1", None) if "SLURM_JOB_ID" in os.environ else None  # Windows does not know it
        return (signal.SIGTERM,) if of_slurm is None else (signal.SIGTERM, of_slurm)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._num_updates = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in self.signals():
                signal.signal(number, self._note)  # the trainer puts back what there was

    def _note(self, number: int, frame: Any) -> None:
        self.received = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > self._num_updates:  # else gradients are being accumulated, and would be lost
            self._num_updates = trainer.global_step
            if trainer.strategy.reduce_boolean_decision(self.received, all=False):
                trainer._signal_connector.received_sigterm = True  # ends the run behind the validation that may be due

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and trainer.state.fn is TrainerFn.FITTING and not is_saved(trainer, self.path):
            trainer.save_checkpoint(self.path)


def is_saved(trainer: pl.Trainer, path: Path) -> bool:
    """Whether this process has read this optimizer step from `path`, or saved it there; an earlier run's file may be of the same step."""
    steps = getattr(trainer.strategy.checkpoint_io, "steps", {})
    saved = steps.get(path.resolve()) if trainer.is_global_zero and path.is_file() else None
    return trainer.strategy.broadcast(saved) == trainer.global_step  # one rank looks, since all must save together or not at all
