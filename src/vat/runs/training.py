"""One job: compose, fit, test, report."""

import logging
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging
from pytorch_lightning.loggers import WandbLogger
from torch import nn

from vat import files
from vat.data.datamodule import ResidentDataModule
from vat.data.loader import as_input
from vat.data.splits import evenly
from vat.evaluation.diagnosis import looks_for_r
from vat.lightning.classifier import Classifier
from vat.lightning.figures import Figures
from vat.lightning.history import HISTORY, History, seconds_of
from vat.lightning.loggers import finishing_wandb, upload_checkpoints
from vat.models import whiten, whitening_layers
from vat.regularizers import Adversarial, PublishedVAT
from vat.runs import (
    allocator,
    autoprecision,
    checkpoints,
    compilation,
    cross_validation,
    default_eps,
    folders,
    honesty,
    pilots,
    processes,
    provenance,
    records,
    report,
    resume,
    schedules,
    training_state,
    trial,
)
from vat.runs.checkpoints import BEST, LAST, WholeCheckpoints, bring_best
from vat.runs.data_node import make_data
from vat.runs.saving import SaveBest, SaveEnd, SaveLast, SaveOnSignal

TESTS = ("last", "best", "none")

PRECISIONS = (None, 32, "32-true", "16-mixed", "bf16-mixed", "auto")  # all of them with weights in float32


IMAGES_TO_WHITEN = 2000
"""Images from which a whitening first layer is computed. They have more than a million patches."""


def whiten_from(network: nn.Module, data: ResidentDataModule) -> None:
    """Compute the whitening layers of a network, if it has any, from some of the unlabelled images."""
    if whitening_layers(network):
        whiten(network, as_input(data.x[evenly(data.split.unlabeled, IMAGES_TO_WHITEN)]))


# Longer than other functions: the course of a job, from top to bottom.
def train(cfg: DictConfig, folder: Path, start: Path | None = None) -> dict[str, float]:
    """Compose, fit, test, report.

    Args:
        cfg: Composed configuration.
        folder: Folder for all files of the job.
        start: Checkpoint to resume from. None starts a new run.

    Returns:
        The metrics of validation and test, and the seconds that the job took, with those before it was interrupted.
    """
    began = time.perf_counter()
    quiet()
    check(cfg)
    without_effect = honesty.unused(cfg)  # early: `instantiate` replaces references inside `regularizers` by their values
    if cfg.keep_freed_memory:
        allocator.keep_freed_memory()
    pl.seed_everything(cfg.seed, verbose=False)
    data = make_data(cfg.data)
    refuse_early_end(cfg, data.steps_per_epoch)
    data.setup()
    validates = len(data.split.validation) > 0
    if cfg.test == "best" and not validates:
        raise ValueError("test=best needs a validation part to choose a checkpoint, and there is none. Use test=last, or hold examples out")
    settings = folders.settings_digest(cfg)
    cfg, computed = default_eps.filled_in(default_eps.with_random_times(default_eps.with_hidden(cfg, data), data), data)
    if cfg.choose_eps:
        default_eps.tell(computed, data.unit)
        cfg, computed = pilots.chosen(cfg, data, settings, train=train, into=folder), None
    pooled = cross_validation.pooled(cfg, data, settings, train=train) if cross_validation.wanted(cfg) else {}
    pl.seed_everything(cfg.seed, verbose=False)  # earlier runs of this job have drawn numbers
    record = {"config": OmegaConf.to_container(cfg, resolve=True), **records.describe(data), "environment": dict(provenance.environment())}
    network = records.make_network(cfg.model, record)
    whiten_from(network, data)  # a resumed run later loads the filters of its checkpoint
    if not cfg.channels_last:
        network = network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]  # its stub asks for a dtype too
    trial.refuse_unusable(network, data)
    saved = None
    if start is not None:
        saved = checkpoints.read_checkpoint(start)
        resume.refuse_other_run(saved, start, network, record)
        if not saved["global_step"]:  # Lightning would take it for a checkpoint at the end of an epoch
            start = None

    def seconds() -> float:
        return time.perf_counter() - began + seconds_of(saved or {})

    classifier = make_classifier(cfg, network, data, record)
    if cfg.test != "none" or any(looks_for_r(r) or isinstance(r, PublishedVAT | Adversarial) for r in classifier.regularizers.values()):
        trial.refuse_without_gradient(network, data)
    if cfg.compile:
        compilation.compile_in_place(network)
    precision = chosen_precision(cfg, classifier, data, saved)
    record["environment"]["precision"] = precision
    data.num_views = 2 if any(r.needs_view for r in classifier.regularizers.values()) else 1

    with folders.claimed(folder):
        resume.prepare(cfg, folder, start, saved or {})
        if start is not None and saved is not None:
            bring_best(start, saved, folder / "checkpoints", needed=cfg.test == "best")
        write_origin(cfg, folder, record, settings)
        with finishing_wandb():
            logger = instantiate(cfg.logger, save_dir=str(folder)) if cfg.logger._target_ else False
            trainer = instantiate(
                cfg.trainer,
                precision=precision,
                logger=logger,
                callbacks=callbacks(cfg, folder, seconds),
                plugins=WholeCheckpoints(),
                default_root_dir=str(folder),
            )
            report.settings(cfg)
            report.note(data.summary)
            honesty.tell_of_tuned(cfg)
            honesty.tell_of_unused(without_effect, cfg)
            default_eps.tell(computed, data.unit)
            schedules.warn_of_long_ones(cfg)
            honesty.warn_of_few(data)
            honesty.warn_of_radius(classifier, data)
            if logger:
                logger.log_hyperparams({**record, "method": " + ".join(classifier.regularizers) or "none"})
            if start is not None and saved is not None:
                training_state.refuse_foreign_state(saved, start, classifier, trainer)
            with resume.restoring(start):
                trainer.fit(classifier, datamodule=data, ckpt_path=start, weights_only=True)
            end(trainer, classifier)
            if cfg.scheduler and trainer.global_step < cfg.trainer.max_steps:
                reached = f"{trainer.global_step} of {cfg.trainer.max_steps} steps"
                warnings.warn(f"the run ended after {reached}, before the end of the learning rate's schedule", stacklevel=1)
            if cfg.test == "best":  # not by the trainer, which would load the weights without their average
                classifier.load_state_dict(checkpoints.read_checkpoint(folder / "checkpoints" / BEST)["state_dict"])
                trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, EMAWeightAveraging)]  # pyright: ignore[reportAttributeAccessIssue]  # it would validate its own average
            (metrics,) = trainer.validate(classifier, datamodule=data, verbose=False) if validates else ({},)
            if cfg.test != "none":
                (tested,) = trainer.test(classifier, datamodule=data, verbose=False)
                metrics = {**metrics, **tested}
            metrics = {**metrics, **pooled}
            if pooled and logger:
                logger.log_metrics({**pooled, "val/error": 1 - pooled["val/accuracy"]}, step=trainer.global_step)
            if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                upload_checkpoints(logger.experiment, folder / "checkpoints", metrics)
            pool = honesty.of_the_pool(classifier, data)
            notes = honesty.notes(classifier, data, pool)
            metrics = {**honesty.counts(classifier, pool), **metrics, "seconds": seconds()}
            others = report.other_radii(classifier.lds_eps, dict(classifier.regularizers.items()))
            lds = f"at ε = {classifier.lds_eps:g} ({data.unit}){others}"
            if trainer.is_global_zero:
                if classifier.confusion is not None:
                    report.confusion(classifier.confusion, data.class_names, folder / report.CONFUSION)
                report.write_page(metrics, folder, record, lds=lds, notes=notes)
                files.write_json(folder / folders.METRICS, metrics)  # last, because this file marks the job as done
        if trainer.is_global_zero:
            report.closing(metrics, folder, record, lds=lds, counts=classifier.confusion, notes=notes)
    return metrics


def chosen_precision(cfg: DictConfig, classifier: Classifier, data: ResidentDataModule, saved: dict[str, Any] | None) -> str:
    """The precision of a job, as Lightning names it. `auto` is measured, and the result is printed."""
    if cfg.trainer.precision != "auto":
        return "32-true" if cfg.trainer.precision in (None, 32) else cfg.trainer.precision
    precision, why = autoprecision.choose(cfg, classifier, data, saved)
    report.console.print(f"precision {precision}: {why}")
    return precision


@rank_zero_only
def write_origin(cfg: DictConfig, folder: Path, record: dict[str, Any], settings: str) -> None:
    """Write a job's settings, its environment, and the digest of the composed settings."""
    files.write(folder / folders.CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
    files.write_json(folder / folders.ENVIRONMENT, {**record["environment"], "data": record["data"], "settings": settings})


def refuse_early_end(cfg: DictConfig, steps_per_epoch: int) -> None:
    """Refuse a run that ends before its first validation, if it needs one, or before the end of the learning rate's schedule.

    Raises:
        ValueError: If it ends before. Names the keys.
    """
    batches = cfg.trainer.max_steps * cfg.trainer.accumulate_grad_batches
    if cfg.test == "best" and 0 <= batches < steps_per_epoch and cfg.trainer.val_check_interval is None:
        raise ValueError(
            f"test=best with trainer.max_steps={cfg.trainer.max_steps}: the run ends before its first validation, after "
            f"data.steps_per_epoch={steps_per_epoch} steps. Lower this number, or use test=last"
        )
    epochs, updates = cfg.trainer.max_epochs, math.ceil(steps_per_epoch / cfg.trainer.accumulate_grad_batches)
    if cfg.scheduler and epochs is not None and epochs >= 0 and epochs * updates < cfg.trainer.max_steps:
        raise ValueError(
            f"trainer.max_epochs={epochs} ends the run before trainer.max_steps={cfg.trainer.max_steps}, the length of the learning rate's "
            "schedule. Set only trainer.max_steps"
        )


def make_classifier(cfg: DictConfig, network: nn.Module, data: ResidentDataModule, record: dict[str, Any]) -> Classifier:
    """The network with its loss, regularizers and optimizer."""
    return Classifier(
        network,
        instantiate(cfg.regularizers, _convert_="all"),
        num_classes=data.num_classes,
        optimizer=instantiate(cfg.optimizer, _convert_="all"),
        scheduler=instantiate(cfg.scheduler, _convert_="all"),
        seed=cfg.seed,
        lds_eps=data.lds_eps if cfg.lds_eps is None else cfg.lds_eps,
        reestimate_batch_norm=cfg.reestimate_batch_norm,
        record=record,
    )


def check(cfg: DictConfig) -> None:
    """Refuse invalid settings of the job itself. Constructors of its parts check theirs.

    Raises:
        ValueError: If a value is invalid. Names the key, the value and what is allowed.
    """
    possible = {
        "seed": (lambda v: type(v) is int and 0 <= v < 2**32, "an integer from 0 to 4294967295"),
        "test": (lambda v: v in TESTS, f"one of {', '.join(TESTS)}"),
        "ema": (lambda v: v is None or (type(v) in (int, float) and 0 <= v < 1), "a number >= 0 and < 1, or null"),
        "lds_eps": (lambda v: v is None or (type(v) in (int, float) and 0 <= v < math.inf), "a finite number >= 0, or null"),
        "figures": (lambda v: v is None or (type(v) is int and v >= 0), "an integer >= 0, or null"),
        **dict.fromkeys(
            ("reestimate_batch_norm", "keep_freed_memory", "channels_last", "compile", "choose_eps"),
            (lambda v: type(v) is bool, "true or false"),
        ),
        "trainer.accumulate_grad_batches": (lambda v: type(v) is int and v >= 1, "an integer >= 1"),
        "trainer.gradient_clip_val": (lambda v: v is None or (type(v) in (int, float) and v >= 0), "a number >= 0, or null"),
        "trainer.log_every_n_steps": (lambda v: v is None or (type(v) is int and v >= 0), "an integer >= 0"),
    }
    for key, (allows, what) in possible.items():
        if not allows(value := OmegaConf.select(cfg, key)):
            raise ValueError(f"{key}={value}: must be {what}")
    if cfg.scheduler and cfg.scheduler.get("T_max", 1) < 1:
        raise ValueError(f"scheduler.T_max={cfg.scheduler.T_max}: must be >= 1. Set trainer.max_steps to the length of the run")
    if cfg.trainer.get("limit_train_batches") == 0:
        raise ValueError("trainer.limit_train_batches=0: nothing would be trained. To evaluate a checkpoint, use src/evaluate.py")
    for key in ("limit_val_batches", "limit_test_batches"):
        if cfg.trainer.get(key) == 0:
            raise ValueError(f"trainer.{key}=0: a run ends with a validation, and with a test unless test=none")
    if cfg.compile:
        compilation.refuse_second_derivatives(cfg)
    if cfg.trainer.precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={cfg.trainer.precision}: must be one of {', '.join(map(str, PRECISIONS[2:]))}")
    if cfg.trainer.precision == "auto":
        autoprecision.refuse_several_processes(cfg)
    if str(cfg.trainer.precision).endswith("-mixed") and cfg.trainer.gradient_clip_val and cfg.optimizer.get("fused"):
        raise ValueError(
            f"trainer.gradient_clip_val with trainer.precision={cfg.trainer.precision}: Lightning cannot clip for a fused optimizer there. "
            "Add optimizer.fused=false"
        )
    if cfg.trainer.strategy.startswith(("fsdp", "deepspeed")):
        raise ValueError(f"trainer.strategy={cfg.trainer.strategy}: weights cannot be divided among processes. Use trainer.strategy=ddp")
    processes.refuse_port_in_use(cfg)


def end(trainer: pl.Trainer, classifier: Classifier) -> None:
    """End the training of a restored run that has nothing left to train. Lightning does not call the callbacks then."""
    concerned = [callback for callback in trainer.callbacks if isinstance(callback, SaveEnd | EMAWeightAveraging)]  # pyright: ignore[reportAttributeAccessIssue]
    if not any(callback.done for callback in concerned if isinstance(callback, SaveEnd)):
        classifier.to(trainer.strategy.root_device)  # the trainer has already moved it away
        for callback in concerned:
            callback.on_train_end(trainer, classifier)
        # Loggers record the following values at this step and epoch. The epoch was not over when the checkpoint was written.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        epochs: Any = trainer.fit_loop.epoch_progress.current
        epochs.processed = epochs.completed = epochs.ready


def callbacks(cfg: DictConfig, folder: Path, seconds: Callable[[], float]) -> list[Callback]:
    """The callbacks: checkpoints after every validation, progress bar, moving average of the weights."""
    saved = folder / "checkpoints"
    found: list[Callback] = [
        History(folder / HISTORY, seconds),
        SaveOnSignal(saved / LAST),
        SaveEnd(saved / LAST),
        # Before SaveLast, whose checkpoint records the best.
        SaveBest(saved),
        SaveLast(saved / LAST),
    ]
    if cfg.trainer.enable_progress_bar is not False:
        found.append(report.Progress(refresh_rate=10))
    if cfg.figures is not None:  # before the moving average, which restores the weights at the end of a validation
        found.append(Figures(folder, every_n_steps=cfg.figures, at_end="validation" if cfg.test == "none" else "test"))
    if cfg.ema is not None:
        found.append(EMAWeightAveraging(decay=cfg.ema))
    return found


def quiet() -> None:
    """Silence messages that do not help a user of this project."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*sync_dist=True.*",
        ".*dirpath has changed.*",
        ".*LeafSpec.*deprecated.*",
        ".*treespec.*deprecated.*",
        ".*Found .* module.* in eval mode.*",
        ".*Total length of `list` across ranks is zero.*",  # data without a validation part, for which this project warns itself
        ".*log_every_n_steps.*",
        ".*could not find the monitored key.*",  # a resumed run, before its first validation
    ):
        warnings.filterwarnings("ignore", message)
