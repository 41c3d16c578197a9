"""Predictions of a checkpoint for images or rows of features, as CSV."""

import csv
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from vat import files
from vat.data.files import tables
from vat.data.files.image_files import MODES, SUFFIXES, ImageFiles
from vat.data.files.texts import read_texts
from vat.data.loader import Inputs, as_input
from vat.data.own.images import images_within
from vat.data.own.text import encode
from vat.functional import probabilities
from vat.runs import checkpoints, folders, records, report
from vat.runs.text import cell

SECOND_PASS = 16  # examples of the second pass that shows randomness
MOST_DIFFERENCE = 0.01  # between two passes, relative to the largest logit. bfloat16 rounds to 0.004


def predict(
    checkpoint: Path,
    data: Path,
    output: Path,
    *,
    chances: bool = False,
    name: str | None = None,
    overwrite: bool = False,
    batch_size: int = 500,
    device: str = "auto",
    allow_targets: Sequence[str] = (),
) -> int:
    """Write a line for each example: the file or the number of the row, the class, and its probability.

    Args:
        checkpoint: Checkpoint of a trained network.
        data: An image, a folder of images, or a .npz, CSV or Parquet file. A .npz has the inputs as `x`.
        output: CSV file to write.
        chances: Whether to add a column with the probability of each class.
        name: Column of a CSV or Parquet file to copy. It identifies a row.
        overwrite: Whether to replace `output` if it exists.
        batch_size: Examples at a time.
        device: "auto" for a GPU if there is one, or torch's name of a device.
        allow_targets: Your packages whose networks may be created.

    Returns:
        The number of examples.

    Raises:
        FileNotFoundError: If there is no such checkpoint, file or folder.
        ValueError: If one of them cannot be read, or the examples are not like those of the training.
    """
    folders.existing(checkpoint)
    for key, value in {"probabilities": chances, "overwrite": overwrite}.items():
        if type(value) is not bool:
            raise ValueError(f"{key}={value}: must be true or false")
    if os.path.realpath(output) in (os.path.realpath(data), os.path.realpath(checkpoint)):  # `resolve` raises for a link to itself
        raise ValueError(f"output={output} is also an input file. Name another.")
    if output.exists() and not output.is_file():
        raise ValueError(f"output={output} is {'a folder' if output.is_dir() else 'not a regular file'}. Name another.")
    if output.exists() and not overwrite:
        raise ValueError(f"output={output} exists. Name another, or add overwrite=true")
    if not (type(batch_size) is int and batch_size >= 1):
        raise ValueError(f"batch_size={batch_size}: must be an integer >= 1")
    saved = checkpoints.read_checkpoint(checkpoint)
    record = saved["record"]
    on = records.device_named(device)
    network = records.network_of(saved, checkpoint, allow_targets=allow_targets).to(on)
    names, inputs, copied = read_inputs(data, record, name)
    names = [cell(example) if isinstance(example, str) else example for example in names]
    copied = None if copied is None else [cell(value) for value in copied]
    classes = [cell(name) for name in record["class_names"]]
    starts = range(0, len(names), batch_size)
    with ExitStack() as stack:
        with folders.writable(output.parent, "output"):
            part = stack.enter_context(files.replacing(output))
        # A file's name that is not UTF-8 is written as its own bytes.
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file, torch.no_grad():
            writer = csv.writer(file)
            of_classes = [cell(f"p({c})") for c in record["class_names"]] if chances else []
            writer.writerow(["example", *([] if name is None else [cell(name)]), "prediction", "confidence", *of_classes])
            for start in track(starts, description="predicting", console=report.console, transient=True):
                rows = torch.arange(start, min(start + batch_size, len(names)))
                x = prepared(inputs[rows], record, data)
                logits = network(x.to(on))
                if start == 0:
                    _warn_of_randomness(network, x.to(on), logits)
                p = probabilities(logits).cpu()
                if not p.isfinite().all():
                    example = names[start + int(p.isfinite().all(1).logical_not().nonzero()[0])]
                    raise ValueError(f"input={data}: the network's output for {example} is not finite, so there is no prediction")
                for row, shares, chosen in zip(rows.tolist(), p.tolist(), p.argmax(1).tolist(), strict=True):
                    ahead = [names[row]] if copied is None else [names[row], copied[row]]
                    behind = [f"{share:.6f}" for share in shares] if chances else []
                    writer.writerow([*ahead, classes[chosen], f"{shares[chosen]:.6f}", *behind])
    return len(names)


def _warn_of_randomness(network: nn.Module, x: Tensor, logits: Tensor) -> None:
    """Warn if a second pass, over some of the inputs, gives other logits."""
    some = slice(min(SECOND_PASS, (len(x) + 1) // 2))  # fewer, because an example's logits must not depend on the others
    first, second = logits[some], network(x[some])
    if (difference := float((first - second).abs().max() / first.abs().max().clamp(min=1e-30))) > MOST_DIFFERENCE:
        warnings.warn(
            f"the network gives other logits for the same input when it is called again: they differ by {difference:.2g} of the largest. "
            "So the predictions differ from run to run. Turn off randomness and batch statistics in evaluation mode",
            stacklevel=2,
        )


def read_inputs(data: Path, record: dict[str, Any], name: str | None = None) -> tuple[Sequence[str | int], Inputs, list[str] | None]:
    """The examples at `data`: names, values as in the files, and the column `name`. Images are read only when they are needed."""
    shape = tuple(record["input_shape"])
    if not data.exists():
        raise FileNotFoundError(f"input={data}: there is no such file or folder")
    if not (data.is_file() or data.is_dir()):
        raise ValueError(f"input={data} is a device, a pipe or a socket. Name a regular file or a folder.")
    preparation = record.get("preparation") or {}
    if "text" in preparation:
        if name is not None and data.name.lower().endswith(".txt"):
            raise ValueError(f"id={name}: a .txt file has no columns")
        table = read_texts(data, text=preparation["text"], ids=name)
        return range(len(table.texts)), encode(table.texts, preparation), table.ids
    suffix, known = data.suffix.lower(), (*SUFFIXES, *tables.SUFFIXES)
    if suffix in (".csv", ".parquet") and len(shape) == 3:
        raise ValueError(f"input={data} holds a row of numbers for each example, but the network takes images of shape {shape}")
    if data.is_file() and suffix not in known:
        raise ValueError(f"input={data}: its name must end in {', '.join(known)}: convert it to one of these")
    if data.is_file() and suffix in tables.SUFFIXES:
        columns = preparation.get("columns")
        if name is not None and (suffix == ".npz" or columns is None):
            raise ValueError(f"id={name}: a column is copied from a CSV or Parquet file, by a network that was trained on one")
        table = tables.read_table(data, label=None, ids=name, features=columns)
        return range(len(table.x)), _arranged(torch.from_numpy(table.x), shape, data), table.ids
    if name is not None:
        raise ValueError(f"id={name}: images have no columns. The name of each is its file")
    modes = {channels: mode for mode, channels in MODES.items()}
    if len(shape) != 3 or shape[0] not in modes or shape[1] != shape[2]:
        raise ValueError(
            f"input={data}: image files do not give inputs of shape {shape}, which the network takes. Name a .npz, CSV or Parquet file"
        )
    paths = [data] if data.is_file() else [data / within for within in images_within(data)[0]]
    if not paths:
        raise ValueError(f"input={data} holds no image ({', '.join(SUFFIXES)})")
    return [str(path) for path in paths], ImageFiles(paths, size=shape[1], mode=modes[shape[0]], workers=2), None


def _arranged(x: Tensor, shape: tuple[int, ...], data: Path) -> Tensor:
    """Images with their channels first, as the network takes them."""
    if x.ndim == 3 and len(shape) == 3 and shape[0] == 1:
        x = x.unsqueeze(1)
    if x.ndim == 4 and (x.shape[3], *x.shape[1:3]) == shape != x.shape[1:]:
        x = x.permute(0, 3, 1, 2)
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"input={data} must hold inputs of shape {shape}, which the network takes, got {tuple(x.shape[1:])}")
    return x


def prepared(x: Tensor, record: dict[str, Any], data: Path) -> Tensor:
    """Convert values of a file (B, …) to inputs of the network, as in its training.

    Raises:
        ValueError: If this is not possible, or the inputs are out of range.
    """
    if "text" in (record.get("preparation") or {}):
        return x
    if record["config"]["data"].get("zca"):
        raise ValueError(
            "the network was trained on whitened images, and the checkpoint has no whitening. Train a network with data.zca=false"
        )
    if "preparation" not in record and not record["unit"].startswith("pixels"):
        raise ValueError("the checkpoint does not say how its inputs were standardised. Train again with this version")
    if x.dtype == torch.uint8 and record["unit"] in ("units of the data file", "standard deviations of each feature"):
        raise ValueError(f"input={data} holds bytes. The network was trained on numbers in {record['unit']}: give them as floats")
    x = as_input(x)
    preparation = record.get("preparation") or {}
    if ("mean" in preparation) != ("std" in preparation):
        raise ValueError("the checkpoint's preparation of inputs is damaged: it needs mean and std")
    if "mean" in preparation:
        mean, std = (torch.tensor(preparation[key], dtype=torch.float64) for key in ("mean", "std"))
        x = (x.double() - mean) / std
    x = x.float()
    low, high = record.get("bounds") or ((0.0, 1.0) if record["unit"].startswith("pixels") else (-torch.inf, torch.inf))
    slack = 1e-4 * (high - low)
    if float(x.min()) < low - slack or float(x.max()) > high + slack:
        raise ValueError(
            f"input={data}: inputs must be in [{low:g}, {high:g}], as in training, got {float(x.min()):g} to {float(x.max()):g}. Give "
            "images as bytes, or as numbers in [0, 1]"
        )
    return x
