"""What a checkpoint's record says of its network and data, and what is made of it."""

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from hydra.utils import get_class, get_object, instantiate
from omegaconf import DictConfig
from torch import nn

from vat.data.datamodule import ResidentDataModule
from vat.data.own.base import OwnData
from vat.models import Normalize
from vat.runs.checkpoints import read_checkpoint
from vat.runs.targets import names_any, refuse_foreign

DESCRIBED = {
    "class_names": (list, tuple),
    "input_shape": (list, tuple),
    "mean": (list, tuple, NoneType),
    "std": (list, tuple, NoneType),
    "unit": str,
}
"""What the record of any checkpoint says of the inputs, and its type."""


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
    takes = inspect.signature(get_object(model["_target_"])).parameters
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
