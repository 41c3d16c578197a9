"""The subject of an evaluation: a checkpoint's network, and the examples that it may be tested on."""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig
from torch import Tensor, nn

from vat.data.datamodule import ResidentDataModule
from vat.data.files import download
from vat.data.loader import EvalLoader
from vat.data.own.copies import find_copies
from vat.data.splits import evenly
from vat.runs import checkpoints, folders, records
from vat.runs.data_node import make_data


@dataclass(frozen=True)
class Subject:
    """A network and its test examples.

    Attributes:
        network: Network in evaluation mode, on the device.
        record: Record of its run, with settings, class names and the input's description.
        data: Data set with the test part.
        rows: Rows of the test part to use.
        run: Folder of the run that wrote the checkpoint.
        device: Device of the network.
    """

    network: nn.Module
    record: dict[str, Any]
    data: ResidentDataModule
    rows: Tensor
    run: Path
    device: torch.device

    def batches(self, size: int) -> EvalLoader:
        """The examples in batches of `size`."""
        return EvalLoader(self.data.x, self.data.y, self.rows, batch_size=size)


def subject(cfg: DictConfig) -> Subject:
    """The checkpoint's network and the examples to evaluate it on.

    Raises:
        FileNotFoundError: If there is no such checkpoint, or a file of its training is absent.
        ValueError: If it is damaged, the data do not fit it, or there are none.
    """
    path = folders.existing(cfg.ckpt_path)
    checkpoint = checkpoints.read_checkpoint(path)
    record = checkpoint["record"]
    device = records.device_named(cfg.device)
    network = records.network_of(checkpoint, path, allow_targets=cfg.allow_targets).to(device)
    if cfg.get("data"):
        node = cfg.data
        if "seed" in node and not any(typed.startswith("data.seed=") for typed in HydraConfig.get().overrides.task):
            seed = record["config"]["data"].get("seed")
            # The attacks' seed would draw another synthetic set. Only an integer is taken: text could be an interpolation.
            node.seed = seed if type(seed) is int else node.seed
        data = make_data(node)
        data.given = record.get("preparation")
        data.setup()
        refuse_other_data(record, data, path)
        refuse_other_preparation(record, data, path)
        refuse_training_examples(checkpoint, data, path, allow_targets=cfg.allow_targets)
    else:
        try:
            data = trained_data(checkpoint, path, allow_targets=cfg.allow_targets)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error}. {path} was trained on it. Start in the folder where the training was started, or name the data by data=..."
            ) from error
        refuse_changed_data(record, data, path)
        refuse_other_data(record, data, path)
    for key in ("batch_size", "limit"):
        if cfg[key] is not None and not (type(cfg[key]) is int and cfg[key] >= 1):
            raise ValueError(f"{key}={cfg[key]}: must be an integer >= 1{', or null for all' if key == 'limit' else ''}")
    if not (isinstance(cfg.norms, ListConfig) and all(isinstance(norm, str) for norm in cfg.norms)):
        raise ValueError(f"norms={cfg.norms}: must be a list such as norms=[l2]")
    for norm, radii in cfg.eps.items():
        if radii is not None and not (isinstance(radii, ListConfig) and all(type(eps) in (int, float) for eps in radii)):
            raise ValueError(f"eps.{norm}={radii}: must be a list of numbers such as eps.{norm}=[0.5,1], or null")
    rows = data.split.test
    if len(rows) == 0:
        raise ValueError("the test part of the data is empty: there is nothing to evaluate")
    rows = rows if cfg.limit is None else evenly(rows, cfg.limit)
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return Subject(network, record, data, rows, run, device)


def trained_data(checkpoint: dict[str, Any], path: Path, *, allow_targets: Sequence[str] = ()) -> ResidentDataModule:
    """The data set that a checkpoint was trained on, ready for use.

    Raises:
        ValueError: If the checkpoint names no data set, or its settings are invalid.
        DownloadError: If a file is absent from the folder that the checkpoint names. Nothing is downloaded into it.
    """
    data = records.data_of(checkpoint, path, allow_targets=allow_targets)
    with download.only_reading() if checkpoint["record"]["config"]["data"].get("data_dir") else nullcontext():
        data.setup()
    return data


def refuse_other_data(record: dict[str, Any], data: ResidentDataModule, path: Path) -> None:
    """Refuse data of another shape or unit, or of other classes, than those of the training.

    Raises:
        ValueError: If one differs. Names the first difference.
    """
    found = {"inputs of shape": list(data.input_shape), "the classes": list(data.class_names), "inputs in": data.unit}
    trained = {"inputs of shape": record["input_shape"], "the classes": record["class_names"], "inputs in": record["unit"]}
    for what, value in found.items():
        if value != trained[what]:
            raise ValueError(
                f"{path} was trained on {what} {_shown(trained[what])}, but {type(data).__name__} has {_shown(value)}. Evaluate it on its "
                "own data (without data=...), or on similar data"
            )


def refuse_other_preparation(record: dict[str, Any], data: ResidentDataModule, path: Path) -> None:
    """Refuse features in another order than that of the training, or standardised by other moments.

    Raises:
        ValueError: If they differ.
    """
    own, trained = preparation(data.preparation), preparation(record.get("preparation") or data.preparation)
    refuse_other_columns(trained, own, path)
    if any(own[key] != trained[key] for key in ("mean", "std")):
        raise ValueError(
            f"{path} was trained on inputs that were prepared otherwise. {type(data).__name__}.load must use its attribute given"
        )


def preparation(found: dict[str, Any] | None) -> dict[str, Any]:
    """How values of a file became inputs (`ResidentDataModule.preparation`), with defaults for absent keys."""
    return {"columns": None, "mean": 0.0, "std": 1.0, **(found or {})}


def refuse_other_columns(trained: dict[str, Any], given: dict[str, Any], path: Path) -> None:
    """Refuse features in another order than that of the training.

    Raises:
        ValueError: If the order differs.
    """
    if trained["columns"] != given["columns"]:
        raise ValueError(
            f"{path} was trained on the columns {_shown(trained['columns'])}, but the data have {_shown(given['columns'])}. Give the "
            "same columns"
        )


def refuse_changed_data(record: dict[str, Any], data: ResidentDataModule, path: Path) -> None:
    """Refuse a checkpoint's own data if they have changed. Its training examples could be among those to test.

    Raises:
        ValueError: If they have changed.
    """
    if _changed(record, data):
        raise ValueError(
            f"{path} was trained on other data: the files have changed since. Training examples could be among those to test. "
            "Put the old files back, or name data that it has not seen by data=..."
        )


def refuse_training_examples(
    checkpoint: dict[str, Any], data: ResidentDataModule, path: Path, *, allow_targets: Sequence[str] = ()
) -> None:
    """Refuse the network's own data with another split, if training examples would be tested. Warn of copies of these in other data.

    Raises:
        ValueError: If there are such examples.
    """
    record, digest, test = checkpoint["record"], records.data_digest(data), data.split.test  # the digest reads every file
    if record.get("split") == data.split.digest and record.get("data") == digest:
        return
    try:
        with download.only_reading(), warnings.catch_warnings(action="ignore"):  # the training gave these warnings
            trained = trained_data(checkpoint, path, allow_targets=allow_targets)
        if _changed(record, trained):
            raise ValueError("they have changed since")
    except (OSError, ValueError) as error:
        warnings.warn(
            f"the examples to test were not compared with those that {path} was trained on ({error}). If some are the same, the result is "
            "too good",
            stacklevel=2,
        )
        return
    seen = trained.split.unlabeled  # which has the labelled rows too
    if record.get("data") == digest:
        if number := int(torch.isin(test, seen).sum()):
            raise ValueError(
                f"{path} was trained on {number} of the {len(test)} examples to test: these data are its own, with another split. "
                "Remove data=..., or use the same split"
            )
        return
    for kind, number, of in find_copies(trained.x, seen, data.x, test):
        warnings.warn(
            f"{number} of {of} examples to test {kind} examples that {path} was trained on. If these are copies, the result is too good. "
            "Remove them from the data",
            stacklevel=2,
        )


def _changed(record: dict[str, Any], trained: ResidentDataModule) -> bool:
    """Whether the data of the training, read again, differ from those that its record describes."""
    found = records.describe(trained)
    return any(record.get(key, found[key]) != found[key] for key in ("split", "data"))


def _shown(value: Any) -> str:
    return str(value) if not isinstance(value, list) or len(value) <= 12 else f"{value[:3]} and {len(value) - 3} more"
