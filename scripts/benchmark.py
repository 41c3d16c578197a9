"""How fast a VAT step is, beside a supervised step of the same batch timed in turn, and what stands around it.

python scripts/benchmark.py                       # all sections; make benchmark
python scripts/benchmark.py step --networks mlp conv_large --batch 128
python scripts/benchmark.py growth

Runs on whatever is there and says what that was. Every time is a median, every ratio the median of the ratios of pairs that were
timed one after the other, so that a busy machine moves both. F is one clean forward pass without a graph.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import repeat
from math import log
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # before torch is imported: see train.py

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from pytorch_lightning.loggers import CSVLogger
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from vat import VAT
from vat.data.loader import Batch, Chain, Flip, ResidentLoader, Translate
from vat.data.splits import labeled_subset, stratified_parts
from vat.lightning.classifier import Classifier
from vat.models import MLP, ConvLarge, WideResNet
from vat.runs import allocator, report, training
from vat.runs.compilation import compile_in_place
from vat.step import Key, Step

Action = Callable[[], Any]
console = Console(width=140, highlight=False)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CALLS = 20 if DEVICE.type == "cuda" else 1  # in a sample: a single one on an idle GPU would show how fast it is launched


def timed(action: Action, calls: int = 1) -> float:
    """Seconds of a call, with the device's queue empty before and after them all."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(calls):
        action()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / calls


def in_turn(actions: dict[str, Action], *, reference: str, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of each, and the median and range of its ratios to the reference, which is timed again before each of them."""
    for action in actions.values():  # once for what is made or chosen at the first call
        action()
        action()
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    ratios: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            base, own = timed(actions[reference], CALLS), timed(action, CALLS)
            seconds[name].append(own)
            ratios[name].append(own / base)
    return {name: _summary(seconds[name], ratios[name]) for name in actions}


def _summary(seconds: Sequence[float], ratios: Sequence[float]) -> dict[str, float]:
    return {"seconds": median(seconds), "ratio": median(ratios), "least": min(ratios), "most": max(ratios)}


def _range(value: dict[str, float]) -> str:
    return f"{value['least']:.2f} to {value['most']:.2f}"


# -------------------------------------------------------------------------------------------------------------------- the step

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP((1, 28, 28), 10, hidden=(1200, 600, 300, 150), noise=0.0), (1, 28, 28)),
    "conv_large": (lambda: ConvLarge((3, 32, 32), 10), (3, 32, 32)),
    "resnet": (lambda: WideResNet((3, 32, 32), 10), (3, 32, 32)),
}


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Lightning's, without a cache; none for float32."""
    return torch.autocast(DEVICE.type, dtype, enabled=dtype is not torch.float32, cache_enabled=False)


def optimizer_step(optimizer: torch.optim.Optimizer, dtype: torch.dtype, loss: Callable[[], Tensor]) -> Action:
    """One step of the optimizer on a loss, under autocast where `dtype` is not float32."""

    def run() -> None:
        optimizer.zero_grad()
        with autocast(dtype):
            value = loss()
        value.backward()
        optimizer.step()

    return run


def steps(network: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype) -> dict[str, Action]:
    """One optimizer step each: of cross entropy alone, and of a smoothness term alone found in several ways, on the same batch."""
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
    """As the port that is copied most computes it: the direction by a full backward pass, weight gradients included."""
    with torch.no_grad():
        target = network(x).softmax(1)
    d = _unit(torch.rand_like(x) - 0.5).requires_grad_()
    kl_div(network(x + xi * d).log_softmax(1), target, reduction="batchmean").backward()
    assert d.grad is not None
    r = eps * _unit(d.grad)
    network.zero_grad()
    return kl_div(network(x + r).log_softmax(1), target, reduction="batchmean")


def tuned_port(network: nn.Module, x: Tensor, *, xi: float = 10.0, eps: float = 1.0) -> Tensor:
    """The same without the weight gradients of the direction's pass."""
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
    """The step of every network in every precision asked for."""
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
                warnings.simplefilter("ignore")  # that finite differences are noise in half precision is not the matter here
                found = in_turn(steps(network, x, y, getattr(torch, precision)), reference="supervised", repeats=arguments.repeats)
            table = Table("step", "ms", "of a supervised step", "range", "in F", title=f"{name}, batch {arguments.batch}, {precision}")
            for action, value in found.items():
                in_f = value["ratio"] / found["F"]["ratio"]
                table.add_row(action, f"{1e3 * value['seconds']:.1f}", f"{value['ratio']:.2f}", _range(value), f"{in_f:.1f}")
                rows.append({"network": name, "batch": arguments.batch, "precision": precision, "step": action, "in_f": in_f, **value})
            console.print(table)
    return rows


# ----------------------------------------------------------------------------------------------------------- what stands around it


def section_trainer(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A step of Lightning's trainer, with logging and progress bar, beside the same step in a bare loop, one after the other in turn."""
    training.quiet()
    rows = []
    for name in arguments.networks:
        make, shape = NETWORKS[name]
        ratios = [trainer_share(make, shape, arguments.batch) for _ in range(max(3, arguments.repeats // 3))]
        rows.append({"network": name, "batch": arguments.batch, "share_of_the_bare_loops_rate": ratios})
        least, most = min(ratios), max(ratios)
        console.print(f"{name}: Lightning's trainer runs at {median(ratios):.2f} ({least:.2f} to {most:.2f}) of a bare loop's rate")
    return rows


def _loader(shape: Sequence[int], batch: int) -> ResidentLoader:
    x, y = torch.rand(2000, *shape, device=DEVICE), torch.randint(10, (2000,), device=DEVICE)
    rows = (torch.arange(100), torch.arange(2000))
    return ResidentLoader(x, y, *rows, batch_size_labeled=batch, batch_size_unlabeled=batch, steps_per_epoch=10**6, seed=0)


def _classifier(network: nn.Module) -> Classifier:
    return Classifier(
        network.to(DEVICE, memory_format=torch.channels_last),  # pyright: ignore[reportCallIssue]
        [VAT(1.0, direction="margin")],
        num_classes=10,
        optimizer=lambda parameters: torch.optim.Adam(parameters, fused=True),
    )


def bare_step(network: nn.Module, batches: Iterator[Batch]) -> Action:
    """The next step of a loop of one's own."""
    vat, optimizer = VAT(1.0, direction="margin"), torch.optim.Adam(network.parameters(), fused=True)

    def run() -> None:
        _, labeled, unlabeled = next(batches)
        assert labeled.y is not None
        assert unlabeled is not None
        loss = cross_entropy(network(labeled.x), labeled.y) + vat(network, unlabeled.x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


class InTurn(pl.Callback):
    """Seconds of the trainer's steps and of another's, run behind each of them; a few to warm up do not count."""

    def __init__(self, other: Action) -> None:
        self.other = other
        self.own_seconds = self.other_seconds = self.began = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        own, other = time.perf_counter() - self.began, timed(self.other)
        if trainer.global_step > WARM:
            self.own_seconds += own
            self.other_seconds += other
        self.began = time.perf_counter()


WARM, LOGGED_EVERY = 3, 50


def trainer_share(make: Callable[[], nn.Module], shape: Sequence[int], batch: int) -> float:
    """Rate of the trainer's steps with CSV logging, diagnostics and the progress bar, of a bare loop's; one step of all is logged."""
    network = make().to(DEVICE, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    turns = InTurn(bare_step(network, iter(_loader(shape, batch))))
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator=DEVICE.type if DEVICE.type == "cpu" else "gpu",
            devices=1,
            max_steps=WARM + LOGGED_EVERY,
            log_every_n_steps=LOGGED_EVERY,
            logger=CSVLogger(folder),
            callbacks=[turns, report.Progress(refresh_rate=10)],
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(_classifier(make()), train_dataloaders=_loader(shape, batch))
    return turns.other_seconds / turns.own_seconds


class PerSample(Dataset[tuple[Tensor, Tensor]]):
    """Images augmented one at a time, as an ordinary data set does."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.augment = Chain(Translate(2), Flip())
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.augment(self.x[row : row + 1].float() / 255, self.generator)[0], self.y[row]


def section_data(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Examples a second of the resident loader and of an ordinary one, both with translation and flip, on CIFAR-10's shape."""
    x = torch.randint(256, (10_000, 3, 32, 32), dtype=torch.uint8)
    y = torch.randint(10, (10_000,))
    resident = ResidentLoader(
        x.to(DEVICE),
        y.to(DEVICE),
        torch.arange(10_000),
        None,
        batch_size_labeled=128,
        batch_size_unlabeled=1,
        steps_per_epoch=10**6,
        seed=0,
        augment=Chain(Translate(2), Flip()),
    )
    batches = iter(resident)
    loader = DataLoader(PerSample(x, y), batch_size=128, shuffle=True, drop_last=True)
    ordinary = (batch for epoch in repeat(loader) for batch in epoch)
    found = in_turn(
        {"resident": lambda: next(batches), "ordinary": lambda: next(ordinary)}, reference="resident", repeats=arguments.repeats
    )
    times = found["ordinary"]["ratio"]
    console.print(f"resident tensors are batched and augmented at {times:.0f} times the rate of an ordinary DataLoader of one process")
    return [
        {"loader": name, "examples_per_second": 128 / value["seconds"], "times_resident": value["ratio"]} for name, value in found.items()
    ]


# ------------------------------------------------------------------------------------------------------------------------- memory


class Peak(TorchDispatchMode):
    """Most bytes of tensors alive at once within it; those of `held` count from the start. Buffers inside an operator are not seen."""

    def __init__(self, held: Sequence[Tensor]):
        super().__init__()
        self.live = self.most = 0
        self.storages: dict[int, weakref.ref[Any]] = {}
        for tensor in held:
            self.count(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self.count(value)
        return out

    def count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place in self.storages:
            return

        def freed(_: Any) -> None:
            del self.storages[place]
            self.live -= size

        self.storages[place] = weakref.ref(storage, freed)
        self.live += size
        self.most = max(self.most, self.live)


def peak_memory(action: Action, held: Sequence[Tensor]) -> int:
    """Bytes, with what is held, which has no gradients yet: the allocator's on a GPU, those of the tensors alive elsewhere."""
    if DEVICE.type == "cuda":
        action()  # cuBLAS keeps a workspace from its first call on, which is no part of the step
        for tensor in held:
            tensor.grad = None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        action()
        return torch.cuda.max_memory_allocated() - before + sum(tensor.nbytes for tensor in held)
    with Peak(held) as peak:
        action()
    return peak.most


def section_memory(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory of `vat(model, x).backward()` beside that of a supervised loss of the same batch; weights and gradients included."""
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


# ------------------------------------------------------------------------------------------------------------------------- growth

GROWTH = {"batch": (32, 128, 512), "side": (8, 16, 32, 64), "classes": (10, 100, 1000), "iterations": (1, 2, 4, 8)}
EXAMPLES = (10**3, 10**4, 10**5, 10**6)


def section_growth(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds and memory of a VAT step against its sizes, and of a set of examples; the exponent between the two largest: 1 is linear."""
    repeats = max(3, arguments.repeats // 3)
    rows = []
    for name, values in GROWTH.items():
        found = [_small_step(repeats, **{name: value}) for value in values]
        amount = [value**2 if name == "side" else value for value in values]
        label = "pixels" if name == "side" else name
        rows += [_grown(f"step: {quantity}", label, amount, [one[quantity] for one in found]) for quantity in ("seconds", "MiB")]
    epochs = [_epoch(number) for number in EXAMPLES]
    rows += [_grown(what, "examples", EXAMPLES, [one[what] for one in epochs]) for what in ("set-up: seconds", "epoch: seconds")]
    for row in rows:
        told = ", ".join(f"{amount}: {value:.3g}" for amount, value in zip(row["amounts"], row["values"], strict=True))
        console.print(f"{row['what']} against {row['against']}: {told}; exponent {row['exponent']:.2f}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    growth_figure(rows).savefig(arguments.folder / "growth.png", dpi=130)
    console.print(f"figure: {arguments.folder / 'growth.png'}")
    return rows


def _small_step(repeats: int, *, batch: int = 64, classes: int = 10, side: int = 16, iterations: int = 1) -> dict[str, float]:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, classes),
    ).to(DEVICE)  # fmt: skip
    x = torch.randn(batch, 3, side, side, device=DEVICE)
    vat = VAT(1.0, direction="finite_difference", num_power_iterations=iterations)
    actions: dict[str, Action] = {"step": lambda: vat(network, x).backward()}
    most = peak_memory(actions["step"], [*network.parameters(), *network.buffers(), x])
    return {"seconds": in_turn(actions, reference="step", repeats=repeats)["step"]["seconds"], "MiB": most / 2**20}


def _epoch(number: int) -> dict[str, float]:
    """Seconds to divide a synthetic set, 100 of it labelled, and make its loader; and to go once through it."""
    x, y = torch.rand(number, 16, device=DEVICE), torch.randint(10, (number,), device=DEVICE)
    loaders: list[ResidentLoader] = []

    def set_up() -> None:
        _, pool = stratified_parts(y.cpu(), (number // 10, number - number // 10), seed=0)
        rows = pool[labeled_subset(y.cpu()[pool], 100, balanced=True, seed=0)]
        steps = len(pool) // 128
        loaders.append(ResidentLoader(x, y, rows, pool, batch_size_labeled=32, batch_size_unlabeled=128, steps_per_epoch=steps, seed=0))

    seconds = timed(set_up)
    batches = iter(loaders[0])
    return {"set-up: seconds": seconds, "epoch: seconds": timed(lambda: [next(batches) for _ in range(len(loaders[0]))])}


def _grown(what: str, against: str, amounts: Sequence[float], values: Sequence[float]) -> dict[str, Any]:
    exponent = log(values[-1] / values[-2]) / log(amounts[-1] / amounts[-2])
    return {"what": what, "against": against, "amounts": list(amounts), "values": list(values), "exponent": exponent}


def growth_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Each quantity against what grows, both logarithmic, beside a line of exponent 1."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    columns = -(-len(rows) // 2)
    for place, row in enumerate(rows):
        axes = figure.add_subplot(2, columns, place // 2 + 1 + columns * (place % 2))
        amounts, values = row["amounts"], row["values"]
        axes.loglog(amounts, [values[-1] * amount / amounts[-1] for amount in amounts], color="#999999", linestyle="--", label="linear")
        axes.loglog(amounts, values, color="#0072B2", marker="o", label="measured")
        axes.set_xlabel(row["against"])
        axes.set_title(f"{row['what']}\nexponent {row['exponent']:.2f}", fontsize=9)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


# --------------------------------------------------------------------------------------------------------------------- the defaults


def section_defaults(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What a default gains: the time of a VAT step without it, by the override that switches it off, of the step as it is."""
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
    """As `in_turn`, of a step in processes without what a process is given when it starts, beside others with it."""
    pairs = [
        [_in_a_process_of_its_own(network, batch, *how) for how in ((True, os.environ["GOMP_SPINCOUNT"]), (keep, spin))] for _ in range(3)
    ]
    return _summary([bare for _, bare in pairs], [bare / usual for usual, bare in pairs])


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


# ------------------------------------------------------------------------------------------------------------- start and processes


def section_start(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds until a job is composed, in a fresh process each time: imports, schemas, configuration."""
    commands = {"import torch": ["-c", "import torch"], "train.py": [str(ROOT / "src" / "train.py"), "--cfg", "job"]}
    run = partial(subprocess.run, check=True, capture_output=True)
    seconds = {name: median(timed(partial(run, [sys.executable, *words])) for _ in range(10)) for name, words in commands.items()}
    console.print(
        f"start-up: {seconds['train.py']:.1f} s from the command to the composed job, of which torch {seconds['import torch']:.1f} s"
    )
    return seconds


def section_processes(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds a step of one global batch in one process and in two, DDP and FSDP2, from the difference of a short and a longer run."""
    found: dict[str, float] = {}
    on = f"trainer.accelerator={'gpu' if torch.cuda.device_count() >= 2 else 'cpu'}"
    setting = ["data=digits", "model=cnn", "data.batch_size_labeled=128", "data.batch_size_unlabeled=512", "test=none", "logger=none"]
    kinds = {
        "1 process": [on],
        "2 processes": ["trainer=ddp", "trainer.devices=2", on],
        "2 processes, FSDP2": ["trainer=ddp", "trainer.devices=2", on, "trainer.strategy=fsdp2"],
    }
    for name, kind in kinds.items():
        seconds = []
        for count in (20, 120):
            with tempfile.TemporaryDirectory() as folder:
                words = [
                    *setting,
                    *kind,
                    "vat.direction=margin",
                    "figures=null",
                    "trainer.enable_progress_bar=false",
                    f"trainer.max_steps={count}",
                ]
                command = [sys.executable, str(ROOT / "src" / "train.py"), *words, f"hydra.run.dir={folder}"]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                job = partial(subprocess.run, command, check=True, capture_output=True, env=environment)
                seconds.append(timed(job))
        found[name] = (seconds[1] - seconds[0]) / 100
    told = ", ".join(f"{name}: {1e3 * value:.0f} ms a step" for name, value in found.items())
    console.print(f"digits, CNN, 128 + 512 examples a step, one thread a process: {told}")
    return found


def section_scaling(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The arithmetic of a step against the communication of its gradients: a ring's 2 (n - 1) / n of them, once a step."""
    rows = []
    table = Table("network", "parameters", "F, GFLOP", "devices", "step, ms", "gradients, ms", "hidden down to a batch of")
    for name in arguments.networks:
        make, shape = NETWORKS[name]
        network = make().eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, *shape))
        flops, parameters = counter.get_total_flops(), sum(p.numel() for p in network.parameters())
        for devices, bandwidth in ((8, arguments.link), (64, arguments.network)):
            each = flops * (3 + 5) / (arguments.tflops * 1e12)  # one labelled and one unlabelled example, margin direction
            sent = 2 * (devices - 1) / devices * 4 * parameters / (bandwidth * 1e9)
            enough = sent / (flops * (1 + 2) * 2 / 3 / (arguments.tflops * 1e12))  # behind the backward pass alone
            values = (flops / 1e9, devices, 1e3 * each * arguments.batch, 1e3 * sent, enough)
            table.add_row(
                name, f"{parameters / 1e6:.2f} M", f"{values[0]:.3f}", str(devices), *(f"{v:.2f}" for v in values[2:4]), f"{enough:.0f}"
            )
            rows.append(
                {"network": name, "parameters": parameters, "flops": flops, "devices": devices, "step": values[2], "sent": values[3]}
            )
    console.print(table)
    return rows


# --------------------------------------------------------------------------------------------------------------------------- main

SECTIONS = {
    "start": section_start,
    "step": section_step,
    "memory": section_memory,
    "defaults": section_defaults,
    "trainer": section_trainer,
    "data": section_data,
    "processes": section_processes,
    "growth": section_growth,
    "scaling": section_scaling,
}


def main() -> None:
    """Run the sections asked for, and write benchmark.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), help=f"of {', '.join(SECTIONS)}; all of them where none is named")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--tflops", type=float, default=100.0, help="of a device, as convolutions reach them; for the section scaling")
    parser.add_argument("--link", type=float, default=200.0, help="GB/s between the devices of a machine; for scaling")
    parser.add_argument("--network", type=float, default=20.0, help="GB/s between machines; for scaling")
    parser.add_argument("--folder", type=Path, default=Path("results/benchmark"))
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if arguments.repeats < 1 or arguments.batch < 1:
        parser.error(f"--repeats {arguments.repeats} --batch {arguments.batch}: must be at least 1")
    allocator.keep_freed_memory()  # as train.py does
    machine = {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor() or platform.machine(),
        "tf32": DEVICE.type == "cuda" and torch.backends.cudnn.allow_tf32,  # of convolutions, under the name of float32
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
        path.write_text(json.dumps(found, indent=1) + "\n")  # after each, in case a later one fails
    console.print(f"as JSON: {path}")


if __name__ == "__main__":
    main()
