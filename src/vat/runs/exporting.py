"""A trained network in a format that needs nothing of this project, or only its network's class, to be read."""

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

TOLERANCE = 1e-4  # of logits, relative to the largest: another runtime adds in another order

DESCRIPTION = "description"


class Format(NamedTuple):
    """A way to write a network, and to read it back as a function of inputs.

    Attributes:
        suffix: Of the file.
        needs: Packages.
        save: (network, example inputs, description as JSON, path).
        load: (path, packages that it may name classes of, if any) -> (inputs -> logits, description as JSON).
    """

    suffix: str
    needs: tuple[str, ...]
    save: Callable[[nn.Module, Tensor, str, Path], None]
    load: Callable[..., tuple[Callable[[Tensor], Tensor], str]]


def export(checkpoint: Path, to: str, output: Path | None = None, *, allow_targets: Sequence[str] = ()) -> Path:
    """Write a checkpoint's network as `output`, by default beside it, and check that what is read back predicts the same.

    Networks from elsewhere are made where they are of a package in `allow_targets`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the format is unknown or its packages are not installed, the checkpoint is damaged, or predictions differ.
    """
    form = by_name("format", FORMATS, to)
    if absent := [name for name in form.needs if importlib.util.find_spec(name) is None]:
        raise ValueError(f"format={to} takes {' and '.join(absent)}, not installed here: pip install {' '.join(absent)}")
    saved = checkpoints.read_checkpoint(folders.existing(checkpoint))
    record = saved["record"]
    network = records.network_of(saved, checkpoint, allow_targets=allow_targets).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    text = json.dumps(description(record), ensure_ascii=False)
    path = checkpoint.with_suffix(form.suffix) if output is None else output
    if path.suffix != form.suffix:
        raise ValueError(f"output={path}: its name must end in {form.suffix}")
    if path.exists() and not path.is_file():
        raise ValueError(f"output={path} is {'a folder' if path.is_dir() else 'no regular file'}: name another")
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
            raise ValueError(f"{part} holds another description than was written")
        with torch.no_grad():
            expected, again, got = network(x), network(x), predict(x)
        difference = float((expected - got).abs().max() / expected.abs().max().clamp(min=1e-30))
        if not torch.equal(expected, again):
            raise ValueError(f"{checkpoint}: the network gives another output at each call, so that no file can be compared with it")
        if expected.shape != got.shape or not difference <= TOLERANCE:
            raise ValueError(f"{path.name}, not written, gives other predictions than {checkpoint}: by {difference:.2g} of the largest")
    return path


def description(record: dict[str, Any]) -> dict[str, Any]:
    """What a user of the exported network must know: its input, how a file's values become one, its classes, its architecture."""
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
    """Sixteen random inputs within the bounds, or two of large ones, on which predictions are compared."""
    low, high = record.get("bounds") or (-2.0, 2.0)
    shape = (16 if math.prod(record["input_shape"]) <= 1 << 20 else 2, *record["input_shape"])
    if number := (record.get("preparation") or {}).get("vocabulary_size"):
        return torch.randint(number, shape, generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(0))


def save_safetensors(network: nn.Module, x: Tensor, text: str, path: Path) -> None:
    """The weights, with the description in the file's metadata."""
    from safetensors.torch import save_file  # pyright: ignore[reportMissingImports]  # an optional extra

    save_file({name: t.contiguous() for name, t in network.state_dict().items()}, path, metadata={DESCRIPTION: text})


def load_safetensors(path: Path, allow_targets: Sequence[str] = ()) -> tuple[Callable[[Tensor], Tensor], str]:
    """The network, made by its class, one of this project or of the packages in `allow_targets`, and given the weights."""
    from safetensors import safe_open  # pyright: ignore[reportMissingImports]

    with safe_open(path, framework="pt") as file:
        text = file.metadata()[DESCRIPTION]
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
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
    """The graph, for any number of examples: `torch.export.load(path).module()`."""
    program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path, extra_files={DESCRIPTION: text})


def load_torch_export(path: Path, allow_targets: Sequence[str] = ()) -> tuple[Callable[[Tensor], Tensor], str]:
    """The graph as a module."""
    extra = {DESCRIPTION: ""}
    program = torch.export.load(path, extra_files=extra)
    return program.module(), extra[DESCRIPTION]


def save_onnx(network: nn.Module, x: Tensor, text: str, path: Path) -> None:
    """The graph, for any number of examples; the description is in its metadata."""
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
    """The graph, run by ONNX Runtime."""
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
