"""Measure the speed of a VAT step relative to a supervised step of the same batch, and of the code around it.

python scripts/benchmark.py                       # all sections; make benchmark
python scripts/benchmark.py step --networks mlp conv_large --batch 128

It runs on any machine and prints the hardware. Every time is a median. Every ratio is the median over pairs that are timed one after the
other, so that a busy machine slows both. F is one clean forward pass without a graph.
"""

import argparse
import json
import os
import platform
import resource
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # before torch is imported: see train.py

import torch
from benchmark_around import DEVICE, NETWORKS, console, section_data, section_processes, section_start, section_trainer
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from vat import VAT
from vat.evaluation.cost import Action, in_turn, peak_memory, summary
from vat.runs import allocator
from vat.runs.compilation import compile_in_place
from vat.step import Key, Step


def _range(value: dict[str, float]) -> str:
    return f"{value['least']:.2f} to {value['most']:.2f}"


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Autocast as in Lightning, without a cache. For float32 it is disabled."""
    return torch.autocast(DEVICE.type, dtype, enabled=dtype is not torch.float32, cache_enabled=False)


def optimizer_step(optimizer: torch.optim.Optimizer, dtype: torch.dtype, loss: Callable[[], Tensor]) -> Action:
    """Make one step of the optimizer on a loss, with autocast if `dtype` is not float32."""

    def run() -> None:
        optimizer.zero_grad()
        with autocast(dtype):
            value = loss()
        value.backward()
        optimizer.step()

    return run


def steps(network: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype) -> dict[str, Action]:
    """Make the optimizer steps to compare on one batch: cross entropy alone, and a smoothness term alone in several variants."""
    step = partial(optimizer_step, torch.optim.Adam(network.parameters(), lr=1e-4, fused=True), dtype)

    def ours(**options: Any) -> Action:
        vat = VAT(1.0, **options)
        return step(lambda: vat.term(Step(network, x, key=Key(0))))

    def forward() -> None:
        with torch.no_grad(), autocast(dtype):
            network(x)

    return {
        "F": forward,
        "supervised": step(lambda: cross_entropy(network(x), y)),
        "finite differences": ours(direction="finite_difference"),
        "margin": ours(direction="margin"),
        "random margin": ours(direction="random_margin"),
        "exact": ours(direction="exact"),
        "port, as shipped": step(lambda: shipped_port(network, x)),
        "port, tuned": step(lambda: tuned_port(network, x)),
    }


def shipped_port(network: nn.Module, x: Tensor, *, xi: float = 10.0, eps: float = 1.0) -> Tensor:
    """VAT as in the most copied port: a full backward pass finds the direction, and also computes the weights' gradients."""
    with torch.no_grad():
        target = network(x).softmax(1)
    d = _unit(torch.rand_like(x) - 0.5).requires_grad_()
    kl_div(network(x + xi * d).log_softmax(1), target, reduction="batchmean").backward()
    assert d.grad is not None
    r = eps * _unit(d.grad)
    network.zero_grad()
    return kl_div(network(x + r).log_softmax(1), target, reduction="batchmean")


def tuned_port(network: nn.Module, x: Tensor, *, xi: float = 10.0, eps: float = 1.0) -> Tensor:
    """VAT as in the most copied port, but the pass for the direction computes no gradients of the weights."""
    with torch.no_grad():
        target = network(x).softmax(1)
    d = _unit(torch.rand_like(x) - 0.5).requires_grad_()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    (g,) = torch.autograd.grad(kl_div(network(x + xi * d).log_softmax(1), target, reduction="batchmean"), d)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return kl_div(network(x + eps * _unit(g)).log_softmax(1), target, reduction="batchmean")


def _unit(d: Tensor) -> Tensor:
    return d / d.flatten(1).norm(dim=1).view(-1, *[1] * (d.dim() - 1)).clamp(min=1e-12)


def section_step(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the steps of every chosen network in every chosen precision."""
    rows = []
    for name in arguments.networks:
        make, shape = NETWORKS[name]
        for precision in arguments.precisions:
            torch.manual_seed(0)
            network = make().to(DEVICE, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            x = torch.randn(arguments.batch, *shape, device=DEVICE)
            x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
            y = torch.randint(10, (arguments.batch,), device=DEVICE)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # finite differences are noise in half precision, but only their time matters here
                found = in_turn(steps(network, x, y, getattr(torch, precision)), reference="supervised", repeats=arguments.repeats)
            table = Table("step", "ms", "of a supervised step", "range", "in F", title=f"{name}, batch {arguments.batch}, {precision}")
            for action, value in found.items():
                in_f = value["ratio"] / found["F"]["ratio"]
                table.add_row(action, f"{1e3 * value['seconds']:.1f}", f"{value['ratio']:.2f}", _range(value), f"{in_f:.1f}")
                rows.append({"network": name, "batch": arguments.batch, "precision": precision, "step": action, "in_f": in_f, **value})
            console.print(table)
    return rows


def section_memory(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure peak memory of `vat(model, x).backward()` relative to a supervised loss of the same batch, with weights and gradients."""
    rows = []
    for name in arguments.networks:
        make, shape = NETWORKS[name]
        network = make().to(DEVICE, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        x, y = torch.randn(arguments.batch, *shape, device=DEVICE), torch.randint(10, (arguments.batch,), device=DEVICE)
        held = [*network.parameters(), *network.buffers(), x, y]

        def smooth(network: nn.Module = network, x: Tensor = x, **options: Any) -> Action:
            return lambda: VAT(1.0, **options)(network, x).backward()

        actions: dict[str, Action] = {
            "supervised": lambda network=network, x=x, y=y: cross_entropy(network(x), y).backward(),
            **{direction: smooth(direction=direction) for direction in ("finite_difference", "margin", "random_margin", "exact")},
        }
        table = Table("step", "MiB", "of a supervised step", title=f"{name}, batch {arguments.batch}, peak memory")
        base = 0
        for action, run in actions.items():
            network.zero_grad()
            most = peak_memory(run, held)
            base = base or most
            table.add_row(action, f"{most / 2**20:.0f}", f"{most / base:.2f}")
            rows.append({"network": name, "batch": arguments.batch, "step": action, "bytes": most, "ratio": most / base})
        console.print(table)
    return rows


def section_defaults(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the gain of each default: the time of a VAT step with an override that switches it off, relative to the default step."""
    rows = []
    for name in arguments.networks:
        make, shape = NETWORKS[name]
        base = torch.randn(arguments.batch, *shape, device=DEVICE)

        def step(
            layout: torch.memory_format = torch.channels_last,
            fused: bool = True,
            dtype: torch.dtype = torch.float32,
            compiled: bool = False,
            make: Callable[[], nn.Module] = make,
            base: Tensor = base,
        ) -> Action:
            torch.manual_seed(0)
            network = make().to(DEVICE, memory_format=layout)  # pyright: ignore[reportCallIssue]
            x = base.contiguous(memory_format=layout)
            optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=fused)
            if compiled:
                compile_in_place(network)
            vat = VAT(1.0, direction="margin")
            return optimizer_step(optimizer, dtype, lambda: vat.term(Step(network, x, key=Key(0))))

        actions = {
            "as it is": step(),
            "optimizer.fused=false": step(fused=False),
            "trainer.precision=bf16-mixed": step(dtype=torch.bfloat16),
            "compile=true": step(compiled=True),
        }
        if name != "mlp":
            actions["channels_last=false"] = step(torch.contiguous_format)
        found = in_turn(actions, reference="as it is", repeats=arguments.repeats)
        if DEVICE.type == "cpu":
            found["keep_freed_memory=false"] = without(name, arguments.batch, keep=False)
            found["GOMP_SPINCOUNT=0"] = without(name, arguments.batch, spin="0")
        table = Table("step", "ms", "of the step as it is", "range", title=f"{name}, batch {arguments.batch}, margin direction")
        for action, value in found.items():
            table.add_row(action, f"{1e3 * value['seconds']:.1f}", f"{value['ratio']:.2f}", _range(value))
            rows.append({"network": name, "batch": arguments.batch, "step": action, **value})
        console.print(table)
    return rows


def without(network: str, batch: int, *, keep: bool = True, spin: str = os.environ["GOMP_SPINCOUNT"]) -> dict[str, float]:
    """Compare steps as `in_turn` does, but in new processes: without a setting that must be made at the start, and with it."""
    pairs = [
        [_in_a_process_of_its_own(network, batch, *how) for how in ((True, os.environ["GOMP_SPINCOUNT"]), (keep, spin))] for _ in range(3)
    ]
    return summary([bare for _, bare in pairs], [bare / usual for usual, bare in pairs])


def _in_a_process_of_its_own(network: str, batch: int, keep: bool, spin: str) -> float:
    with patch.dict(os.environ, GOMP_SPINCOUNT=spin), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_margin_step_seconds, network, batch, keep).result()


def _margin_step_seconds(name: str, batch: int, keep: bool) -> float:
    if keep:
        allocator.keep_freed_memory()
    make, shape = NETWORKS[name]
    network = make().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    x = torch.randn(batch, *shape).contiguous(memory_format=torch.channels_last)
    action = steps(network, x, torch.zeros(batch, dtype=torch.long), torch.float32)["margin"]
    return in_turn({"step": action}, reference="step", repeats=5)["step"]["seconds"]


SECTIONS = {
    "start": section_start,
    "step": section_step,
    "memory": section_memory,
    "defaults": section_defaults,
    "trainer": section_trainer,
    "data": section_data,
    "processes": section_processes,
}


def main() -> None:
    """Run the chosen sections, and write benchmark.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), help=f"some of {', '.join(SECTIONS)}; by default all")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=Path("results/benchmark"))
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"unknown sections {', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}")
    if arguments.repeats < 1 or arguments.batch < 1:
        parser.error(f"--repeats and --batch must be >= 1, got {arguments.repeats} and {arguments.batch}")
    allocator.keep_freed_memory()  # as in train.py
    machine = {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor() or platform.machine(),
        "tf32": DEVICE.type == "cuda" and torch.backends.cudnn.allow_tf32,  # with it, convolutions that count as float32 here run in TF32
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }
    console.print(f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, load {machine['load']:.1f} at the start")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "benchmark.json"
    found: dict[str, Any] = {"machine": machine}
    for name in arguments.sections:
        found[name] = SECTIONS[name](arguments)
        found["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        path.write_text(json.dumps(found, indent=1) + "\n")  # after each section, because a later one can fail
    console.print(f"as JSON: {path}")


if __name__ == "__main__":
    main()
