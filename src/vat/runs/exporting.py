"""Export of a trained network to formats that other programs read. Only safetensors needs the class of the network."""

import importlib.util
import json
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vat import files
from vat.functional import by_name
from vat.runs import checkpoints, folders, records
from vat.runs.renames import renamed
from vat.runs.text import brief

TOLERANCE = 1e-4  # of logits, relative to the largest, because other runtimes sum in another order

DESCRIPTION = "description"


class Format(NamedTuple):
    """A way to write a network, and to read it as a function of inputs.

    Attributes:
        suffix: Suffix of the file.
        needs: Required packages.
        save: Function (network, example inputs, description as JSON, path).
        load: Function (path, allowed packages for its classes, if any) -> (inputs -> logits, description as JSON).
    """

    suffix: str
    needs: tuple[str, ...]
    save: Callable[[nn.Module, Tensor, str, Path], None]
    load: Callable[..., tuple[Callable[[Tensor], Tensor], str]]


def export(checkpoint: Path, to: str, output: Path | None = None, *, allow_targets: Sequence[str] = ()) -> tuple[Path, dict[str, Any]]:
    """Write a checkpoint's network as `output`, by default next to it. Read it again, and check that it predicts the same.

    The network must be from this project or from a package in `allow_targets`.

    Returns:
        The file and its `description`.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If the format is unknown or its packages are not installed, the output cannot be a file of this format, the checkpoint
            is damaged, or predictions differ.
    """
    form = by_name("format", FORMATS, to)
    if absent := [name for name in form.needs if importlib.util.find_spec(name) is None]:
        raise ValueError(f"format={to} needs {' and '.join(absent)}. Run: pip install {' '.join(absent)}")
    saved = checkpoints.read_checkpoint(folders.existing(checkpoint))
    record = saved["record"]
    network = records.network_of(saved, checkpoint, allow_targets=allow_targets).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    told = description(record)
    text = json.dumps(told, ensure_ascii=False)
    path = checkpoint.with_suffix(form.suffix) if output is None else output
    if path.suffix != form.suffix:
        raise ValueError(f"output={path} must end in {form.suffix}")
    if path.exists() and not path.is_file():
        raise ValueError(f"output={path} is {'a folder' if path.is_dir() else 'not a regular file'}. Name another.")
    with ExitStack() as stack:
        with folders.writable(path.parent, "output"):
            part = stack.enter_context(files.replacing(path))
        x = examples(record)
        try:
            form.save(network, x[:2], text, part)
        except Exception as error:  # of a full disk each library tells in its own way
            raise ValueError(f"output={path} cannot be written as {to}: {brief(' '.join(str(error).split()))}") from error
        predict, found = form.load(part, *([allow_targets] if allow_targets else []))
        if json.loads(found) != json.loads(text):
            raise ValueError(f"{part} holds a different description from the one that was written")
        with torch.no_grad():
            expected, again, got = network(x), network(x), predict(x)
        difference = float((expected - got).abs().max() / expected.abs().max().clamp(min=1e-30))
        if not torch.equal(expected, again):
            raise ValueError(f"{checkpoint}: the network gives another output at each call, so that no file can be compared with it")
        if expected.shape != got.shape or not difference <= TOLERANCE:
            raise ValueError(f"{path.name} predicts differently from {checkpoint}: logits differ by {difference:.2g} of the largest")
    return path, told


def input_lines(told: dict[str, Any]) -> str:
    """What an exported network takes, for a terminal."""
    given = told["input"]
    of_texts = given["dtype"] == "int32"
    shape = ", ".join(map(str, given["shape"]))
    line = f"input: {given['dtype']} of shape ({shape}), {'numbers of words or tokens' if of_texts else given['unit']}"
    needed = [name for name in ("columns", "mean", "std", "vocabulary", "tokenizer") if (given["preparation"] or {}).get(name) is not None]
    return line + (f"\nprepare inputs as the file's description says: {', '.join(needed)}" if needed else "")


def description(record: dict[str, Any]) -> dict[str, Any]:
    """Description for users of the exported network: its input, how a file's values become inputs, its classes, its architecture."""
    return {
        "input": {
            "shape": ["batch", *record["input_shape"]],
            "dtype": "int32" if "text" in (record.get("preparation") or {}) else "float32",
            "unit": record["unit"],
            "bounds": record.get("bounds"),
            "preparation": record.get("preparation"),
        },
        "output": "logits, one for each class",
        "class_names": record["class_names"],
        "model": record["config"]["model"],
        "normalize": {"mean": record["mean"], "std": record["std"]},
    }


def examples(record: dict[str, Any]) -> Tensor:
    """Random inputs within the bounds, for the comparison of predictions: sixteen, or two if inputs are large."""
    low, high = record.get("bounds") or (-2.0, 2.0)
    shape = (16 if math.prod(record["input_shape"]) <= 1 << 20 else 2, *record["input_shape"])
    if number := (record.get("preparation") or {}).get("vocabulary_size"):
        return torch.randint(number, shape, generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(0))


def save_safetensors(network: nn.Module, x: Tensor, text: str, path: Path) -> None:
    """Write the weights, with the description in the file's metadata."""
    from safetensors.torch import save_file  # pyright: ignore[reportMissingImports]  # an optional extra

    save_file({name: t.contiguous() for name, t in network.state_dict().items()}, path, metadata={DESCRIPTION: text})


def load_safetensors(path: Path, allow_targets: Sequence[str] = ()) -> tuple[Callable[[Tensor], Tensor], str]:
    """Create the network and load the weights. Its class must be from this project or from a package in `allow_targets`."""
    from safetensors import safe_open  # pyright: ignore[reportMissingImports]

    with safe_open(path, framework="pt") as file:
        text = file.metadata()[DESCRIPTION]
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    told = json.loads(text)
    described = {
        "input_shape": told["input"]["shape"][1:],
        "class_names": told["class_names"],
        **told["normalize"],
        "preparation": told["input"]["preparation"],
    }
    network = records.loaded_network(renamed(told["model"]), described, state, allow_targets=allow_targets)
    return network.eval(), text


def save_torch_export(network: nn.Module, x: Tensor, text: str, path: Path) -> None:
    """Write the graph, for any number of examples. `torch.export.load(path).module()` reads it."""
    program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path, extra_files={DESCRIPTION: text})


def load_torch_export(path: Path, allow_targets: Sequence[str] = ()) -> tuple[Callable[[Tensor], Tensor], str]:
    """Read the graph as a module."""
    extra = {DESCRIPTION: ""}
    program = torch.export.load(path, extra_files=extra)
    return program.module(), extra[DESCRIPTION]


def save_onnx(network: nn.Module, x: Tensor, text: str, path: Path) -> None:
    """Write the graph, for any number of examples, with the description in its metadata."""
    import onnx  # pyright: ignore[reportMissingImports]  # an optional extra

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("torch.onnx", "onnxscript", "onnx_ir"):
            logging.getLogger(name).setLevel(logging.ERROR)
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(
            network, (x,), dynamo=True, dynamic_shapes=shapes, verbose=False, input_names=["input"], output_names=["logits"]
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {DESCRIPTION: text})
    onnx.save(model, path)


def load_onnx(path: Path, allow_targets: Sequence[str] = ()) -> tuple[Callable[[Tensor], Tensor], str]:
    """Read the graph, to run it by ONNX Runtime."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = (one.name for one in session.get_inputs())

    def predict(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    return predict, session.get_modelmeta().custom_metadata_map[DESCRIPTION]


FORMATS = {
    "safetensors": Format(".safetensors", ("safetensors",), save_safetensors, load_safetensors),
    "torch_export": Format(".pt2", (), save_torch_export, load_torch_export),
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), save_onnx, load_onnx),
}
