"""Sections of scripts/benchmark.py about the code around a VAT step: Lightning's trainer, the data, the start of a job, two processes."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from vat import VAT
from vat.data.loader import Batch, Chain, Flip, ResidentLoader, Translate
from vat.evaluation.cost import Action, in_turn, timed
from vat.lightning.classifier import Classifier
from vat.models import MLP, ConvLarge, WideResNet
from vat.runs import report, training

ROOT = Path(__file__).resolve().parents[1]

console = Console(width=140, highlight=False)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP((1, 28, 28), 10, hidden=(1200, 600, 300, 150), noise=0.0), (1, 28, 28)),
    "conv_large": (lambda: ConvLarge((3, 32, 32), 10), (3, 32, 32)),
    "resnet": (lambda: WideResNet((3, 32, 32), 10), (3, 32, 32)),
}


def section_trainer(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time steps of Lightning's trainer, with logging and progress bar, in turn with the same step in a bare loop."""
    training.quiet()
    rows = []
    for name in arguments.networks:
        make, shape = NETWORKS[name]
        ratios = [trainer_share(make, shape, arguments.batch) for _ in range(max(3, arguments.repeats // 3))]
        rows.append({"network": name, "batch": arguments.batch, "share_of_the_bare_loops_rate": ratios})
        least, most = min(ratios), max(ratios)
        console.print(f"{name}: Lightning's trainer reaches {median(ratios):.2f} ({least:.2f} to {most:.2f}) of a bare loop's rate")
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
    """Make the next step of a user's own loop."""
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
    """Time the trainer's steps, and another action after each of them. The first few steps are warm-up and do not count."""

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
    """Rate of the trainer's steps relative to a bare loop's, with CSV logging, diagnostics and progress bar. One of the steps is logged."""
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
    """Images that are augmented one at a time, as in an ordinary data set."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.augment = Chain(Translate(2), Flip())
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.augment(self.x[row : row + 1].float() / 255, self.generator)[0], self.y[row]


def section_data(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the examples per second of the resident and of an ordinary loader, with translation and flip, on CIFAR-10's shape."""
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
    console.print(f"the resident loader is {times:.0f} times as fast as an ordinary DataLoader with one process")
    return [
        {"loader": name, "examples_per_second": 128 / value["seconds"], "times_resident": value["ratio"]} for name, value in found.items()
    ]


def section_start(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure the seconds until a job is composed (imports, schemas, configuration), each time in a new process."""
    commands = {"import torch": ["-c", "import torch"], "train.py": [str(ROOT / "src" / "train.py"), "--cfg", "job"]}
    run = partial(subprocess.run, check=True, capture_output=True)
    seconds = {name: median(timed(partial(run, [sys.executable, *words])) for _ in range(10)) for name, words in commands.items()}
    console.print(
        f"start-up: {seconds['train.py']:.1f} s from the command to the composed job, including torch's {seconds['import torch']:.1f} s"
    )
    return seconds


def section_processes(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure the seconds of a step of one global batch in one process and in two with DDP.

    A step's time is the difference between a short and a longer run, divided by the difference of their steps.
    """
    found: dict[str, float] = {}
    on = f"trainer.accelerator={'gpu' if torch.cuda.device_count() >= 2 else 'cpu'}"
    setting = ["data=digits", "model=cnn", "data.batch_size_labeled=128", "data.batch_size_unlabeled=512", "test=none", "logger=none"]
    kinds = {
        "1 process": [on],
        "2 processes": ["trainer=ddp", "trainer.devices=2", on],
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
