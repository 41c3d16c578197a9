"""`trainer.precision=auto`: bfloat16 if it makes a training step faster and the directions are safe in it, otherwise float32."""

import copy
import time
from typing import Any

import torch
from lightning_fabric.utilities import move_data_to_device
from omegaconf import DictConfig

from vat import VAT, Regularizer
from vat.data.datamodule import ResidentDataModule
from vat.data.loader import Batch
from vat.directions import ascent, exact, margin, random, random_margin
from vat.lightning.classifier import Classifier
from vat.regularizers import PublishedVAT

SAFE_DIRECTIONS = (ascent, exact, margin, random, random_margin)  # finite differences are noise in bfloat16; others are unknown
LEAST_GAIN = 1.1  # time of a step in float32 divided by bfloat16's: a smaller gain does not justify the rounding
REPEATS = 3
FLOAT32, BFLOAT16 = "32-true", "bf16-mixed"
MIXED = (BFLOAT16, "16-mixed")


def refuse_several_processes(cfg: DictConfig) -> None:
    """Refuse `trainer.precision=auto` with several processes, which could choose differently.

    Raises:
        ValueError: If the trainer may start more than one process.
    """
    trainer = cfg.trainer
    if trainer.devices not in (1, "1") or trainer.num_nodes != 1 or trainer.strategy != "auto":
        raise ValueError(
            "trainer.precision=auto works only in one process. Set trainer.devices=1, trainer.num_nodes=1 and trainer.strategy=auto, "
            f"or set trainer.precision to {BFLOAT16} or {FLOAT32}."
        )


def choose(cfg: DictConfig, classifier: Classifier, data: ResidentDataModule, saved: dict[str, Any] | None) -> tuple[str, str]:
    """Choose the precision of a run, and explain the choice.

    Args:
        cfg: Configuration of the run, whose `trainer.precision` is "auto".
        classifier: Untrained classifier. It does not change.
        data: Data set after its `setup`.
        saved: Checkpoint that the run resumes, or None.

    Returns:
        "bf16-mixed" or "32-true", or the precision of the resumed run, and the reason.
    """
    if saved is not None:
        record = saved["record"]
        had = record.get("environment", {}).get("precision", record["config"]["trainer"]["precision"])
        return (had if had in MIXED else FLOAT32), "as before the run was resumed"
    device = _device(cfg.trainer.accelerator)
    if device is None or (device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)):
        return FLOAT32, "this device does not support bfloat16"
    if unsafe := [name for name, regularizer in classifier.regularizers.items() if not _safe(regularizer)]:
        return FLOAT32, f"the direction of {', '.join(unsafe)} is not known to be safe in bfloat16"
    if cfg.trainer.gradient_clip_val and cfg.optimizer.get("fused"):
        return FLOAT32, "a fused optimizer cannot clip gradients in mixed precision"
    seconds = seconds_of_a_step(classifier, data.train_dataloader().batch(0), device)
    measured = f"a step takes {1000 * seconds[BFLOAT16]:.3g} ms in bfloat16, {1000 * seconds[FLOAT32]:.3g} ms in float32"
    return (BFLOAT16 if seconds[FLOAT32] > LEAST_GAIN * seconds[BFLOAT16] else FLOAT32), measured


def seconds_of_a_step(classifier: Classifier, batch: Batch, device: torch.device) -> dict[str, float]:
    """Time a complete step, forward and backward, in each precision. The result is the shortest of three, after one that is not counted.

    A part of the step is not enough. On some CPUs bfloat16 makes a convolution twice as fast, but its weights' gradient ten times slower.
    """
    classifier = copy.deepcopy(classifier).to(device).train()
    classifier.on_fit_start()
    batch = move_data_to_device(batch, device)
    least = {FLOAT32: float("inf"), BFLOAT16: float("inf")}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for repeat in range(REPEATS + 1):
            for precision in least:
                seconds = _step(classifier, batch, device, bfloat16=precision == BFLOAT16)
                if repeat:
                    least[precision] = min(least[precision], seconds)
    return least


def _step(classifier: Classifier, batch: Batch, device: torch.device, *, bfloat16: bool) -> float:
    _wait(device)
    began = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        loss = torch.stack(list(classifier.terms(batch).values())).sum()
    loss.backward()
    _wait(device)
    classifier.zero_grad()
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device(accelerator: str) -> torch.device | None:
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    name = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}.get(accelerator)
    return torch.device(name) if name == "cpu" or (name and torch.cuda.is_available()) else None


def _safe(regularizer: Any) -> bool:
    if isinstance(regularizer, VAT):
        return regularizer.direction in SAFE_DIRECTIONS
    ours = type(regularizer).__module__.startswith("vat.")
    return isinstance(regularizer, Regularizer) and ours and not isinstance(regularizer, PublishedVAT)
