"""A checkpoint's record of its network and data, and how both are created from it."""

import hashlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from vat.data.datamodule import ResidentDataModule
from vat.data.own.base import OwnData
from vat.models import Normalize
from vat.regularizers import Regularizer
from vat.runs import targets
from vat.runs.checkpoints import read_checkpoint
from vat.runs.data_node import make_data
from vat.runs.schema import TOLD
from vat.runs.text import brief

DESCRIBED = {
    "class_names": (list, tuple),
    "input_shape": (list, tuple),
    "mean": (list, tuple, NoneType),
    "std": (list, tuple, NoneType),
    "unit": str,
}
"""Keys of every checkpoint's record that describe the inputs, and their types."""


MOST_VALUES = 1 << 24
"""Most values of one input, 3 × 2,364 × 2,364. A network that pools takes any size, so a record could name one beyond all memory."""


def describe(data: Any) -> dict[str, Any]:
    """Facts of a data set that determine a network, in plain values."""
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
    """A digest of eight hexadecimal digits of the labels, of inputs that are bytes in memory, and of the files that a user named.

    Floats are left out, because they depend on the machine that whitened or drew them.
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
    """Create the network of the user's `model` node. Its constructor gets the facts of `described` that it has arguments for."""
    takes = inspect.signature(_maker(model["_target_"])).parameters
    facts = {name: value for name, value in _facts(described).items() if name in takes}
    if lacking := [name for name in TOLD if name in takes and name not in facts and takes[name].default is inspect.Parameter.empty]:
        raise ValueError(f"{model['_target_']} needs {lacking[0]}, which only texts have. Use data=text, or another model")
    try:
        made = instantiate(model, **facts, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):  # whose message says what is wrong
            raise
        hint = ". +model.NAME=value gives it an argument" if isinstance(error.__cause__, TypeError) else ""
        raise ValueError(f"model._target_={model['_target_']} makes no network ({error.__cause__ or error}){hint}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"model._target_={model['_target_']} must make a torch.nn.Module, got {type(made).__name__}")
    if any(map(is_lazy, made.parameters())):
        said = f"model._target_={model['_target_']} has layers without a size, such as nn.LazyLinear"
        raise ValueError(f"{said}. Give their sizes, or call the network once in its constructor")
    return _complete(made, described)


def _maker(name: Any) -> Any:
    """The class or function of that name, which the user typed."""
    allowed = "name a class or a function that makes a network, as model._target_=my_module.MyNet"
    try:
        found = get_object(name)
    except Exception as error:  # an import can raise anything
        raise ValueError(f"model._target_={name} cannot be found ({brief(' '.join(str(error).split()))}): {allowed}") from error
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        raise ValueError(f"model._target_={name} is a {type(found).__name__}: {allowed}")
    return found


def recorded_network(model: Any, described: dict[str, Any], *, allow_targets: Sequence[str] = ()) -> nn.Module:
    """As `make_network`, for the node of a file.

    Raises:
        RefusedError: If it names something that is not allowed (`vat.runs.targets`).
    """
    return _complete(targets.make(model, "model", allowed=allow_targets, facts=_facts(described)), described)


def _facts(described: dict[str, Any]) -> dict[str, Any]:
    preparation = described.get("preparation") or {}
    of_words = {name: preparation[name] for name in ("counts", "vocabulary_size") if name in preparation}
    return {"input_shape": tuple(described["input_shape"]), "num_classes": len(described["class_names"]), **of_words}


def _complete(network: nn.Module, described: dict[str, Any]) -> nn.Module:
    if described["mean"] is not None:
        network = nn.Sequential(Normalize(described["mean"], described["std"]), network)
    # Convolutions are fastest in this layout. It affects nothing else. `channels_last=false` switches it off in training.
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # its stub asks for a dtype too


def load_network(path: Path, *, allow_targets: Sequence[str] = ()) -> nn.Module:
    """The trained network of a checkpoint, in evaluation mode.

    Args:
        path: Path of the checkpoint.
        allow_targets: Your packages whose networks may be created. A checkpoint must not choose what code runs.

    Raises:
        ValueError: If the file is damaged, is no checkpoint of this project, or names a network that is not allowed.
    """
    return network_of(read_checkpoint(path), path, allow_targets=allow_targets)


def network_of(checkpoint: dict[str, Any], path: Path, *, allow_targets: Sequence[str] = ()) -> nn.Module:
    """As `load_network`, for a checkpoint that was already read from `path`."""
    with _describing_its_weights(path):
        record, state = checkpoint["record"], _network_state(checkpoint)
        _check(record)
        network = loaded_network(record["config"]["model"], record, state, allow_targets=allow_targets)
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{path}: {name} is not finite, so its training diverged. Use an earlier checkpoint")
    return network.eval()


def loaded_network(model: Any, described: dict[str, Any], state: dict[str, Tensor], *, allow_targets: Sequence[str] = ()) -> nn.Module:
    """The network of a file's node, with the file's weights.

    A network of this project is first created without memory, because a file may name more than there is.

    Raises:
        Exception: If node and weights do not fit each other. A constructor or `load_state_dict` chooses the type.
    """
    if not targets.is_own(model, "model"):  # a user's constructor may need values, which the meta device lacks
        with torch.device("meta"):
            with targets.few_parameters(len(state)):
                empty = recorded_network(model, described)
            _try(empty, described)
            empty.load_state_dict(state, assign=True)
    network = recorded_network(model, described, allow_targets=allow_targets)
    network.load_state_dict(state)
    return network


def _try(network: nn.Module, record: dict[str, Any]) -> None:
    """Refuse a network on the meta device, which computes nothing, unless it maps inputs to one logit for each class.

    Raises:
        TypeError: If its output has another shape. The network itself can raise anything.
    """
    dtype = torch.int32 if "text" in (record.get("preparation") or {}) else torch.float32
    with torch.no_grad():
        output = network.eval()(torch.empty(2, *record["input_shape"], dtype=dtype, device="meta"))
    if tuple(output.shape) != (2, len(record["class_names"])):
        raise TypeError(f"it maps two inputs to {tuple(output.shape)}")


def data_of(checkpoint: dict[str, Any], path: Path, *, allow_targets: Sequence[str] = ()) -> ResidentDataModule:
    """The data set that a checkpoint was trained on, before its `setup`.

    Raises:
        ValueError: If it names no data set, or one that is not allowed.
    """
    with _describing_its_weights(path):
        node = checkpoint["record"]["config"]["data"]
    try:
        if not targets.is_own(node, "data"):
            return targets.make(node, "data")
        targets.refuse_foreign(node, "data set", allowed=allow_targets)
        if not all(targets.is_own(node, key) for key in targets.KINDS):
            raise targets.RefusedError("it is no data set")
        return make_data(DictConfig(node), call=lambda given: targets.call_own(given, "data set", allowed=allow_targets))
    except Exception as error:  # a constructor can raise anything for invalid arguments
        name = brief(node.get("_target_") if isinstance(node, dict) else node)
        raise ValueError(f"{path} was trained on {name}, which cannot be created ({error}). Name a data set by data=...") from error


def regularizers_of(config: Mapping[str, Any], *, allow_targets: Sequence[str] = ()) -> list[Regularizer]:
    """The regularizers of a recorded configuration.

    Raises:
        RefusedError: If it names something that is not allowed (`vat.runs.targets`).
    """
    try:
        return [targets.make(node, "regularizers", allowed=allow_targets) for node in config["regularizers"]]
    except targets.RefusedError:
        raise
    except Exception as error:  # a constructor can raise anything for invalid arguments
        raise targets.RefusedError(f"the checkpoint's regularizers cannot be created: {brief(error)}") from error


def _check(record: dict[str, Any]) -> None:
    """Refuse a record whose description of the inputs has other types or values than `describe` gives.

    Raises:
        TypeError: If there is such a value. Names the first.
    """
    for key, kind in DESCRIBED.items():
        if not isinstance(record[key], kind):
            raise TypeError(f"{key} is {brief(record[key])}")
    preparation, config = record.get("preparation") or {}, record["config"]
    per_feature = [value for key in ("mean", "std") if (value := preparation.get(key)) is not None]
    numbers = [record["mean"], record["std"], record.get("bounds"), *map(_numbers, per_feature)]
    scales = [_numbers(value) for of in (record, preparation) if (value := of.get("std")) is not None]
    names = record["class_names"]
    right = {
        "class_names": bool(names) and all(isinstance(name, str) and _is_text(name) for name in names) and len({*names}) == len(names),
        "input_shape": bool(record["input_shape"])
        and all(type(n) is int and n >= 1 for n in record["input_shape"])
        and math.prod(record["input_shape"]) <= MOST_VALUES,
        "mean, std or bounds": all(type(n) in (int, float) and math.isfinite(n) for some in numbers for n in some or ()),
        "std": all(n > 0 for some in scales for n in some),
        "preparation": all(_has_shape(value, record["input_shape"]) for value in per_feature),
        "bounds": record.get("bounds") is None or (len(record["bounds"]) == 2 and record["bounds"][0] < record["bounds"][1]),
        "columns": all(isinstance(name, str) for name in preparation.get("columns") or ()),
        "words": "text" not in preparation or _are_words(preparation, record["input_shape"]),
        "config": "model" in config and isinstance(config["data"], dict),
    }
    for key, good in right.items():
        if not good:
            raise TypeError(f"{key} is {brief(record.get(key))}")


def _is_text(name: str) -> bool:
    """Whether a string can be written as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _are_words(preparation: dict[str, Any], shape: Sequence[int]) -> bool:
    """Whether a `preparation` of texts is one of `vat.data.own.text.Texts`, for inputs of this shape."""
    vocabulary, counts, size = preparation.get("vocabulary"), preparation.get("counts"), preparation["vocabulary_size"]
    if [preparation["max_length"]] != list(shape) or type(size) is not int or not isinstance(preparation["text"], str):
        return False
    if "tokenizer" in preparation:
        return isinstance(preparation["tokenizer"], str) and type(preparation["padding"]) is int
    if not isinstance(vocabulary, list) or not isinstance(counts, list) or not len(counts) == size == len(vocabulary) + 2:
        return False
    return all(isinstance(word, str) for word in vocabulary) and all(type(count) is int and count >= 0 for count in counts)


@contextmanager
def _describing_its_weights(path: Path) -> Iterator[None]:
    try:
        yield
    except targets.RefusedError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # a constructor can raise anything for invalid arguments
        reason = brief(" ".join(str(error).split()))  # torch's message has a line for each tensor
        raise ValueError(f"{path} is no checkpoint of this project: its record does not describe its weights ({reason})") from error


def device_named(name: str) -> torch.device:
    """The device of torch's `name`. "auto" is a GPU if there is one, otherwise the CPU.

    Raises:
        ValueError: If torch has no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        raise ValueError(f"device={name} is not available: {str(error).splitlines()[0]}") from error


def _network_state(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint's network, by name.

    Raises:
        TypeError: If one is not a tensor of real numbers. torch would drop an imaginary part.
    """
    prefix = "network."
    state = {name.removeprefix(prefix): t for name, t in checkpoint["state_dict"].items() if name.startswith(prefix)}
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.is_complex():
            raise TypeError(f"{brief(name)} is {brief(value.dtype if isinstance(value, Tensor) else value)}")
    return state


def _numbers(value: Any) -> list[Any]:
    """The entries of lists within lists, or the value itself."""
    return [number for part in value for number in _numbers(part)] if isinstance(value, list) else [value]


def _has_shape(value: Any, shape: list[int]) -> bool:
    """Whether it is a number for all of an input, for each last dimension, or for each entry of it."""
    try:
        found = [*torch.tensor(value, dtype=torch.float64).shape]
    except (TypeError, ValueError):
        return False
    return found in ([], [1], shape[-1:], shape)
