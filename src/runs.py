"""A job's folder, its checkpoint, and errors that a user can read."""

import fcntl
import hashlib
import inspect
import json
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.experimental.callback import Callback as HydraCallback
from hydra.utils import get_class, instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import nn

from checkpoints import newest_whole, read_checkpoint
from targets import names_any, refuse_foreign
from vat.data.datamodule import ResidentDataModule
from vat.data.own import OwnData
from vat.models import Normalize

BYSTANDERS = ("hydra", "ckpt_path", "logger", "figures", "keep_freed_memory", "allow_targets")
"""Keys that do not change what a job computes."""

DESCRIBED = {
    "class_names": (list, tuple),
    "input_shape": (list, tuple),
    "mean": (list, tuple, NoneType),
    "std": (list, tuple, NoneType),
    "unit": str,
}
"""What the record of any checkpoint says of the inputs, and its type."""

OUTPUTS = Path("outputs")
CONFIG, ENVIRONMENT, METRICS = "config.yaml", "environment.json", "metrics.json"
"""The last is written last: a folder that has it is done."""

USER_ERRORS = (ValueError, TypeError, OSError, FloatingPointError, HydraException, OmegaConfBaseException, MisconfigurationException)
OUT_OF_MEMORY = (
    "out of memory: lower data.batch_size_unlabeled and data.batch_size_labeled (trainer.accumulate_grad_batches makes up for it), "
    "or the model's size; ckpt_path=last goes on where the settings stay the same"
)


def register() -> None:
    """Make `${settings_digest:}` and `${run_folder:…}` known to configurations."""
    OmegaConf.register_new_resolver("settings_digest", _digest_for_hydra, replace=True)
    OmegaConf.register_new_resolver("run_folder", lambda fresh, *, _root_: run_folder(fresh, _root_), replace=True)


def _digest_for_hydra(*, _root_: DictConfig) -> str:
    with readable_errors():  # Hydra asks for it, to name the folder, before the job begins
        return settings_digest(_root_)


def settings_digest(cfg: DictConfig) -> str:
    """Eight hexadecimal digits that follow from everything a job's result depends on."""
    settings = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in BYSTANDERS])
    plain = OmegaConf.to_container(settings, resolve=True)
    return digest(plain)


def digest(settings: Any) -> str:
    """Eight hexadecimal digits that follow from settings in plain values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def finished(folder: Path) -> dict[str, float] | None:
    """The metrics of a job that came to its end in `folder`: a sweep started again goes on with what is missing."""
    path = folder / METRICS
    return json.loads(path.read_text()) if path.is_file() else None


@contextmanager
def writable(folder: Path, key: str) -> Iterator[None]:
    """Make a folder, which the setting `key` names, and let something be written in it.

    Raises:
        OSError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OSError(f"the output folder {folder} cannot be written ({error.strerror}): set {key}=...") from error


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the job's folder, and hold it: no two jobs write into one.

    Raises:
        OSError: it cannot be written, or another job holds it.
    """
    with writable(folder, "hydra.run.dir"):
        (folder / "checkpoints").mkdir(exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        if getattr(rank_zero_only, "rank", 0) == 0:  # the other ranks of a job share its folder
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(f"another job is at work in {folder}: wait for it, or set hydra.run.dir=...") from None
        yield


def keep_logged(folder: Path) -> None:
    """Set aside the metrics.csv of a run that goes on, which Lightning's CSV logger would delete; metrics.1.csv is the oldest."""
    logged = folder / "metrics.csv"
    if getattr(rank_zero_only, "rank", 0) == 0 and logged.is_file():
        logged.rename(folder / f"metrics.{len(list(folder.glob('metrics.*.csv'))) + 1}.csv")


def find_checkpoint(cfg: DictConfig) -> Path | None:
    """The checkpoint a job goes on from: none, the file named, or the newest of the same settings.

    Raises:
        FileNotFoundError: there is no such file.
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


def as_path(value: object, key: str) -> Path:
    """The path that the setting `key` holds.

    Raises:
        ValueError: it holds none, as null.
    """
    if not isinstance(value, str | Path):
        raise ValueError(f"{key}={'null' if value is None else value}: must be a path")
    return Path(value).expanduser()


def existing(path: str | Path, key: str = "ckpt_path") -> Path:
    """The path of a file that the setting `key` names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: what stands there is no path.
    """
    found = as_path(path, key)
    if found.is_dir():
        inside = next((file for file in (found / "checkpoints" / "last.ckpt", found / "last.ckpt") if file.is_file()), None)
        raise FileNotFoundError(f"{key}={path}: that is a folder; name a file" + (f", as {key}={inside}" if inside else ""))
    if not found.is_file():
        raise FileNotFoundError(f"{key}={path}: there is no such file")
    return found


def run_folder(fresh: str, cfg: DictConfig) -> str:
    """The `fresh` folder, or that of the run that `ckpt_path=last` goes on with."""
    newest = _newest_checkpoint(cfg) if cfg.ckpt_path == "last" else None
    return fresh if newest is None else str(newest.parent.parent)


def _newest_checkpoint(cfg: DictConfig) -> Path | None:
    """The last whole checkpoint of the newest run of these settings that has one."""
    found = OUTPUTS.glob(f"*/*-{settings_digest(cfg)}/checkpoints")
    newest_first = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    return next(filter(None, (newest_whole(path.parent) for path in newest_first)), None)


def refuse_other_job(cfg: DictConfig, folder: Path) -> None:
    """Refuse a folder in which a job of other settings, or on files that have changed since, was begun or came to its end.

    Raises:
        ValueError: says what differs and what to do.
    """
    written = folder / CONFIG
    if not written.is_file():
        return
    if settings_digest(DictConfig(OmegaConf.load(written))) != settings_digest(cfg):
        raise ValueError(
            f"{folder} holds a job of other settings, see {written}: leave hydra.sweep.subdir out, or let it tell the jobs apart; "
            "or delete the folder"
        )
    if finished(folder) is not None and issubclass(get_class(cfg.data._target_), OwnData):  # published data are checked when they are read
        data = instantiate(cfg.data, _convert_="all")
        data.setup()
        now = data_digest(data)
        if json.loads((folder / ENVIRONMENT).read_text()).get("data", now) != now:
            raise ValueError(f"{folder} holds the result of other data: the files have changed since; delete the folder to train anew")


def describe(data: Any) -> dict[str, Any]:
    """What a data set decides about a network, in plain values."""
    return {
        "class_names": data.class_names,
        "input_shape": list(data.input_shape),
        "mean": data.mean and list(data.mean),
        "std": data.std and list(data.std),
        "unit": data.unit,
        "bounds": data.bounds and list(data.bounds),
        "preparation": data.preparation,
        "split": data.split.digest,
        "parts": data.split.sizes,
        "data": data_digest(data),
    }


def data_digest(data: Any) -> str:
    """Eight hexadecimal digits of the labels, of the inputs where they are bytes in memory, and of the files that a user named.

    Floats depend on the machine that whitened or drew them.
    """
    digest = hashlib.blake2b(json.dumps(list(data.x.shape)).encode())
    digest.update(data.y.cpu().numpy().tobytes())
    if isinstance(data.x, torch.Tensor) and data.x.dtype == torch.uint8:
        digest.update(memoryview(data.x.cpu().contiguous().numpy()))  # pyright: ignore[reportArgumentType]  # arrays are buffers
    for path in data.files if isinstance(data, OwnData) else ():
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()[:8]


def make_network(model: DictConfig, described: dict[str, Any]) -> nn.Module:
    """The network of a `model` node for data that are `described`, of which its constructor is told what it asks for."""
    takes = inspect.signature(get_class(model["_target_"])).parameters
    facts = {"input_shape": tuple(described["input_shape"]), "num_classes": len(described["class_names"])}
    network = instantiate(model, **{name: value for name, value in facts.items() if name in takes}, _convert_="all")
    if described["mean"] is not None:
        network = nn.Sequential(Normalize(described["mean"], described["std"]), network)
    # The layout in which convolutions are fastest; nothing else is affected. `channels_last=false` switches it off in training.
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # its stub asks for a dtype too


def load_network(path: Path, *, allow_targets: Sequence[str] = ()) -> nn.Module:
    """The trained network of a checkpoint, in evaluation mode.

    Args:
        path: the checkpoint.
        allow_targets: packages of your own whose networks may be made; a checkpoint must not choose what code is run.

    Raises:
        ValueError: the file is damaged, no checkpoint of this project, or names a network from elsewhere.
    """
    return network_of(read_checkpoint(path), path, allow_targets=allow_targets)


def network_of(checkpoint: dict[str, Any], path: Path, *, allow_targets: Sequence[str] = ()) -> nn.Module:
    """As `load_network`, of a checkpoint that was read from `path` already."""
    model = node_of(checkpoint, path, "model", allow_targets=allow_targets)
    with _describing_its_weights(path):
        record, state = checkpoint["record"], _network_state(checkpoint)
        for key, kind in DESCRIBED.items():
            if not isinstance(record[key], kind):
                raise TypeError(f"{key} is {record[key]!r}")
        if not names_any(model, allow_targets):  # a constructor of the user's own may read values, as of a schedule it computes
            with torch.device("meta"):  # first without memory, of which a record may name more than there is
                make_network(DictConfig(model), record).load_state_dict(state, assign=True)
        network = make_network(DictConfig(model), record)
        network.load_state_dict(state)
    return network.eval()


def data_of(checkpoint: dict[str, Any], path: Path, *, allow_targets: Sequence[str] = ()) -> DictConfig:
    """The node of the data set that a checkpoint was trained on.

    Raises:
        ValueError: it names something else, or something from elsewhere.
    """
    node = node_of(checkpoint, path, "data", allow_targets=allow_targets)
    target = node.get("_target_") if isinstance(node, dict) else None
    try:
        kind = get_class(str(target))
    except Exception as error:  # an import, too, raises what it likes
        raise ValueError(f"{path} was trained on {target}, which cannot be found: name a data set by data=...") from error
    if not issubclass(kind, ResidentDataModule):
        raise ValueError(f"{path} was trained on {target}, which is no data set of this project: name one by data=...")
    return DictConfig(node)


def node_of(checkpoint: dict[str, Any], path: Path, key: str, *, allow_targets: Sequence[str] = ()) -> Any:
    """A node of the configuration that a checkpoint carries, in which every target may be made.

    Args:
        checkpoint: as read.
        path: where from.
        key: of the node.
        allow_targets: packages of your own; a checkpoint must not choose what code is run.

    Raises:
        ValueError: there is no such node, or it names something from elsewhere.
    """
    with _describing_its_weights(path):
        node = checkpoint["record"]["config"][key]
    try:
        refuse_foreign(node, allowed=allow_targets)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return node


def refuse_foreign_settings(cfg: DictConfig) -> None:
    """Refuse a configuration whose files name something from elsewhere; what is typed on the command line is the user's word.

    Raises:
        ValueError: names the first such target and the remedy.
    """
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    refuse_foreign(OmegaConf.to_container(cfg, resolve=True), allowed=cfg.allow_targets, typed=typed)


@contextmanager
def _describing_its_weights(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a constructor trips over that is given nonsense
        reason = " ".join(str(error).split())  # torch takes a line for each tensor
        raise ValueError(f"{path} is no checkpoint of this project: its record does not describe its weights ({reason})") from error


def device_named(name: str) -> torch.device:
    """The device of torch's `name`; "auto" is a GPU where there is one, else the CPU.

    Raises:
        ValueError: torch knows none of that name here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the second where torch is built without it
        raise ValueError(f"device={name} is not there: {str(error).splitlines()[0]}") from error


def _network_state(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    prefix = "network."
    return {name.removeprefix(prefix): t for name, t in checkpoint["state_dict"].items() if name.startswith(prefix)}


def refuse_other_run(checkpoint: dict[str, Any], path: Path, network: nn.Module, record: dict[str, Any]) -> None:
    """Going on needs the same architecture, the same optimizer and schedule, which a checkpoint brings along, and the same split.

    Raises:
        ValueError: names the first difference.
    """
    with _describing_its_weights(path):
        saved, trained = _network_state(checkpoint), checkpoint["record"]
        shapes = {name: tuple(t.shape) for name, t in saved.items()}
        parts = {part: _targets(trained["config"][part]) for part in ("regularizers", "optimizer")}
        schedule = {part: _settings(trained["config"][part]) for part in ("optimizer", "scheduler")}
        model, split = json.dumps(trained["config"]["model"]), trained["split"]
    present = network.state_dict()
    for name in sorted(present.keys() | saved.keys()):
        ours = tuple(present[name].shape) if name in present else "absent"
        theirs = shapes.get(name, "absent")
        if ours != theirs:
            raise ValueError(
                f"{path} holds another architecture: {name} is {theirs} there and {ours} here. It was trained with model={model}"
            )
    for part, theirs in parts.items():
        ours = _targets(record["config"][part])
        if theirs != ours:
            raise ValueError(f"{path} was trained with {part} {theirs} and cannot go on with {ours}: keep them, or start anew")
    for part, theirs in schedule.items():
        ours = _settings(record["config"][part])
        for key in sorted({*ours, *theirs}):
            if ours.get(key) != theirs.get(key):
                raise ValueError(
                    f"{path} was trained with {part}.{key}={theirs.get(key)}, here it is {ours.get(key)}: a run that goes on keeps its "
                    "rate and schedule, and with it its length; keep them, or start anew"
                )
    if split != record["split"]:
        raise ValueError(
            f"{path} was trained on another split ({split} there, {record['split']} here): keep seed and data settings to go on from it"
        )
    if trained.get("data", record["data"]) != record["data"]:
        raise ValueError(f"{path} was trained on other data: the files have changed since; put the old ones back, or start anew")
    theirs, ours = (_flattened(config) for config in (trained["config"], record["config"]))
    there, here = theirs.get("ema"), ours.get("ema")
    if there != here:
        raise ValueError(f"{path} was trained with ema={there}, here it is {here}: an average goes on as one; keep it, or start anew")
    if changed := [f"{key} {theirs[key]} -> {ours[key]}" for key in ours if theirs.get(key, ours[key]) != ours[key] and _matters(key)]:
        warnings.warn(f"goes on with other settings than {path}: {', '.join(changed)}", stacklevel=2)


def _matters(key: str) -> bool:
    """Whether a setting takes part in the training; the regularizers have nodes of their own beside their list."""
    node, _, name = key.partition(".")
    if node == "trainer":
        return name in ("precision", "accumulate_grad_batches", "gradient_clip_val")
    return node not in (*BYSTANDERS, "test", "regularizers") and key not in ("data.data_dir", "data.num_workers")


def _flattened(node: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by their keys, as `vat.eps`; those of a list by their numbers."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if items is None:
        return {prefix: node}
    return {key: value for name, child in items for key, value in _flattened(child, f"{prefix}.{name}".lstrip(".")).items()}


def _settings(node: Any) -> dict[str, str]:
    """The settings of a node, as text; none where there is no node."""
    return {str(key): str(value) for key, value in (node or {}).items()}


def _targets(nodes: Any) -> str:
    found = [node["_target_"].rsplit(".", 1)[-1] for node in (nodes if isinstance(nodes, list) else [nodes])]
    return " + ".join(found) or "none"


class WritableFolder(HydraCallback):
    """Refuses a folder that cannot be written in one line, before Hydra fails to make it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with readable_errors(), claimed(Path(config.hydra.run.dir)):
            pass

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        with readable_errors(), writable(folder, "hydra.sweep.dir"), tempfile.TemporaryFile(dir=folder):
            pass


@contextmanager
def readable_errors() -> Iterator[None]:
    """One clear line for a user's mistake in place of a traceback, which HYDRA_FULL_ERROR=1 shows."""
    try:
        yield
    except SIGTERMException:
        print("ended by a signal after saving: ckpt_path=last, or the same sweep, goes on", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM) from None  # its own status would be that of success
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        # Lightning's answer to Ctrl-C in a training, which says nothing.
        print("interrupted: ckpt_path=last, or the same sweep, goes on from the last validation", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except (*USER_ERRORS, MemoryError, RuntimeError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not (_out_of_memory(error) or isinstance(error, USER_ERRORS)):
            raise
        raise SystemExit(f"error: {readable(error)}") from None


def readable(error: BaseException) -> str:
    """What an error says to a user."""
    cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
    if _out_of_memory(cause):
        return f"{OUT_OF_MEMORY} ({str(cause).splitlines()[0] if str(cause) else 'no more is known'})"
    if isinstance(cause, OmegaConfBaseException):  # the rest is for those who wrote the configuration
        return str(cause).splitlines()[0]
    return str(cause) or type(cause).__name__


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)  # the CPU's is no class
