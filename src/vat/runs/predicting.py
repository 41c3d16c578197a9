"""Predictions of a checkpoint for images or rows of features, as CSV."""

import csv
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

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
        checkpoint: of a trained network.
        data: an image, a folder of images, or a .npz, CSV or Parquet file; a .npz holds the inputs as `x`.
        output: the CSV file.
        chances: add a column with the probability of each class.
        name: a column of a CSV or Parquet file to copy, which says what a row is.
        overwrite: replace `output` if it exists.
        batch_size: examples at a time.
        device: "auto" for a GPU where there is one, or a name that torch knows.
        allow_targets: packages of your own whose networks may be made.

    Returns:
        The number of examples.

    Raises:
        FileNotFoundError: there is no such checkpoint, file or folder.
        ValueError: one of them cannot be read, or the examples are not what the network was trained on.
    """
    folders.existing(checkpoint)
    for key, value in {"probabilities": chances, "overwrite": overwrite}.items():
        if type(value) is not bool:
            raise ValueError(f"{key}={value}: must be true or false")
    if os.path.realpath(output) in (os.path.realpath(data), os.path.realpath(checkpoint)):  # `resolve` raises for a link to itself
        raise ValueError(f"output={output} is a file to be read: name another")
    if output.exists() and not output.is_file():
        raise ValueError(f"output={output} is {'a folder' if output.is_dir() else 'no regular file'}: name another")
    if output.exists() and not overwrite:
        raise ValueError(f"output={output} exists: name another, or add overwrite=true")
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
                p = probabilities(network(x.to(on))).cpu()
                if not p.isfinite().all():
                    example = names[start + int(p.isfinite().all(1).logical_not().nonzero()[0])]
                    raise ValueError(f"input={data}: the network's output for {example} is not finite, so there is no prediction")
                for row, shares, chosen in zip(rows.tolist(), p.tolist(), p.argmax(1).tolist(), strict=True):
                    ahead = [names[row]] if copied is None else [names[row], copied[row]]
                    behind = [f"{share:.6f}" for share in shares] if chances else []
                    writer.writerow([*ahead, classes[chosen], f"{shares[chosen]:.6f}", *behind])
    return len(names)


def read_inputs(data: Path, record: dict[str, Any], name: str | None = None) -> tuple[Sequence[str | int], Inputs, list[str] | None]:
    """The examples at `data`: their names, the values as they are in the files, and the column `name`; images are read in their turn."""
    shape = tuple(record["input_shape"])
    if not data.exists():
        raise FileNotFoundError(f"input={data}: there is no such file or folder")
    if not (data.is_file() or data.is_dir()):
        raise ValueError(f"input={data} is a device, a pipe or a socket: name a regular file or a folder")
    preparation = record.get("preparation") or {}
    if "text" in preparation:
        if name is not None and data.name.lower().endswith(".txt"):
            raise ValueError(f"id={name}: a .txt file has no columns")
        table = read_texts(data, text=preparation["text"], group=name)
        return range(len(table.texts)), encode(table.texts, preparation), table.groups
    suffix, known = data.suffix.lower(), (*SUFFIXES, *tables.SUFFIXES)
    if suffix in (".csv", ".parquet") and len(shape) == 3:
        raise ValueError(f"input={data} holds a row of numbers for each example; the network takes images of shape {shape}")
    if data.is_file() and suffix not in known:
        raise ValueError(f"input={data}: its name must end in {', '.join(known)}: convert it to one of these")
    if data.is_file() and suffix in tables.SUFFIXES:
        columns = preparation.get("columns")
        if name is not None and (suffix == ".npz" or columns is None):
            raise ValueError(f"id={name}: a column is copied from a CSV or Parquet file, by a network that was trained on one")
        table = tables.read_table(data, label=None, group=name, features=columns)
        return range(len(table.x)), _arranged(torch.from_numpy(table.x), shape, data), table.groups
    if name is not None:
        raise ValueError(f"id={name}: images have no columns; each is named by its file")
    modes = {channels: mode for mode, channels in MODES.items()}
    if len(shape) != 3 or shape[0] not in modes or shape[1] != shape[2]:
        raise ValueError(
            f"input={data}: the network takes inputs of shape {shape}, which image files do not give: name a .npz, CSV or Parquet file"
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
        raise ValueError(f"input={data} holds inputs of shape {tuple(x.shape[1:])}; the network takes {shape}")
    return x


def prepared(x: Tensor, record: dict[str, Any], data: Path) -> Tensor:
    """Values of a file (B, …) as the network was trained on them.

    Raises:
        ValueError: they cannot be, or lie out of the range of inputs.
    """
    if "text" in (record.get("preparation") or {}):
        return x
    if record["config"]["data"].get("zca"):
        raise ValueError(
            "the network was trained on whitened images, and the checkpoint does not hold the whitening: data.zca=false trains one"
        )
    if "preparation" not in record and not record["unit"].startswith("pixels"):
        raise ValueError("the checkpoint does not say how its inputs were standardised: train it anew with this version")
    if x.dtype == torch.uint8 and record["unit"] in ("units of the data file", "standard deviations of each feature"):
        raise ValueError(f"input={data} holds bytes; the network was trained on numbers in {record['unit']}: give them as floats")
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
            f"input={data}: inputs reach from {float(x.min()):g} to {float(x.max()):g}, out of the range of those trained on, "
            f"[{low:g}, {high:g}]: give images as bytes, or as numbers in [0, 1]"
        )
    return x
