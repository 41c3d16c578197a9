"""A run's checkpoint files. They are written completely or not at all, and reading them executes nothing."""

import io
import os
import pickletools
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
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
"""Names that a pickle may contain. torch's own list is longer, and allows for example `bytearray(28_000_000_000)`."""

DEEPEST = 50
"""Most levels of nested dictionaries and lists. A run's checkpoint has 8."""

MOST_TUPLES = 100_000
"""A checkpoint has four for each tensor. A million nested tuples as a dictionary's key overflow Python's stack."""

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
STATE_OF_BEST = ModelCheckpoint.__qualname__


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's tensors and plain values. Nothing in it is executed.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is truncated, damaged or no checkpoint of this project.
    """
    with path.open("rb") as file:
        try:
            # torch ignores checksums when it reads, and would decompress entries. It writes none that are compressed.
            with zipfile.ZipFile(file) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("it is compressed")
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} in it is damaged")
                pickled = _pickle(archive)
            file.seek(0)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
            _refuse_larger(checkpoint, values=len(pickled), nbytes=4 * os.fstat(file.fileno()).st_size)  # tied weights are counted twice
        except Exception as error:  # the unpickler of a damaged file can raise anything
            raise ValueError(f"{path} cannot be read, it is truncated or no checkpoint. Use an earlier one") from error
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
    """The only pickle of a checkpoint. It may name only tensors and dictionaries.

    Raises:
        ValueError: If it names something else, or there are several.
    """
    names = [name.lower() for name in archive.namelist()]  # torch ignores case when it looks for a file
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
    """Refuse content that grows when it is read: containers that contain themselves or many others, tensors larger than the file.

    Args:
        checkpoint: Content of the checkpoint.
        values: Most values that it may have. Each takes a byte of its pickle.
        nbytes: Most bytes that its tensors may have.

    Raises:
        ValueError: If it has more, or holds something that is neither a tensor nor a plain value.
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
    """The first tensor in plain values, or None."""
    if isinstance(node, dict | list | tuple):
        return next((t for n in (node.values() if isinstance(node, dict) else node) if (t := _first_tensor(n)) is not None), None)
    return node if isinstance(node, Tensor) else None


def newest_whole(folder: Path) -> Path | None:
    """The last checkpoint of the run in `folder`, or the one before it if the last is damaged. None if there is no intact one."""
    for path in (folder / "checkpoints" / name for name in (LAST, PREVIOUS)):
        if path.is_file():
            try:
                read_checkpoint(path)
            except ValueError as error:
                warnings.warn(f"using an earlier checkpoint if there is one: {error}", stacklevel=2)
            else:
                return path
    return None


def bring_best(start: Path, saved: dict[str, Any], folder: Path, *, needed: bool) -> None:
    """Copy the best checkpoint if a run resumes in another folder than that of the checkpoint `start`, with content `saved`.

    Raises:
        ValueError: If it is `needed` and the run had one, but it is absent.
    """
    states = [state for name, state in saved.get("callbacks", {}).items() if str(name).startswith(STATE_OF_BEST)]
    known = {Path(os.path.realpath(place)) for state in states if isinstance(place := state.get("best_model_path"), str) and place}
    best, here = start.resolve().with_name(BEST), folder / BEST
    if here.resolve() in known or here.resolve() == best:  # the run's own folder, where `start` may be a copy from elsewhere
        best = here
    if needed and known and not best.is_file():
        raise ValueError(f"test=best needs {BEST} of the run to resume, which is not next to {start}. Put it there, or use test=last")
    if best == here:
        return
    if best.is_file():
        rank = getattr(rank_zero_only, "rank", 0)
        partial = here.with_name(f"{BEST}.{rank}.part")  # each rank copies it, so none continues before it exists
        shutil.copyfile(best, partial)
        os.replace(partial, here)
    else:
        here.unlink(missing_ok=True)  # of another run


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a new file and then renames it, so a killed run leaves only complete checkpoints. Also keeps the previous one.

    Lightning's own writes into the system's folder for temporary files, and may then have to copy.

    Attributes:
        steps: Optimizer step of each file that this process has read or written.
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
        content = io.BytesIO()  # first in memory: torch reports a full disk as another error
        torch.save(checkpoint, content)
        keep = path.with_name(PREVIOUS) if path.name == LAST and not path.is_symlink() else None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, content.getbuffer(), keep=keep)
            self.steps[path.resolve()] = checkpoint["global_step"]
        except OSError as error:
            raise OSError(
                f"{path} cannot be written ({error.strerror}). Make room or make it writable. ckpt_path=last then resumes from the "
                "previous checkpoint"
            ) from error
