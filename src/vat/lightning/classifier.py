"""The LightningModule: cross entropy + Σ regularizers."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassConfusionMatrix

from vat.batch_norm import reestimate_batch_norm
from vat.data.datamodule import ROWS_WITH_GRAPH
from vat.data.loader import Batch, Part
from vat.functional import as_classes, cross_entropy
from vat.lightning.training import (
    due_report,
    explain,
    last_reports,
    refuse_gradients_not_finite,
    refuse_not_finite,
    refuse_stop_iteration,
)
from vat.random_state import random_state
from vat.regularizers import Regularizer, by_unique_name, live, local_distributional_smoothness
from vat.step import Key, Step


class Classifier(pl.LightningModule):
    """Train a network by cross entropy on labelled inputs and by regularizers on all inputs.

    Only clean labelled passes update the running statistics of batch norm. All randomness in a training step follows from `seed`, the
    micro-step and the rank. To resume a run, no random state is needed.

    Args:
        network: Network from inputs (N, …) to logits (N, num_classes).
        regularizers: Terms to add to the cross entropy.
        num_classes: Number of classes.
        optimizer: Function from the parameters to an optimizer.
        scheduler: Function from the optimizer to a schedule of its learning rate, which advances after every optimizer step. None: a
            constant learning rate.
        seed: Seed of the noise inside the network and of random directions.
        lds_eps: Radius at which the test measures LDS, in the units of the network's input.
        reestimate_batch_norm: Whether to estimate the batch statistics over the training inputs before each evaluation.
        record: Plain values for the checkpoint: settings, class names, the split.

    Attributes:
        confusion: Confusion matrix of the last test, int64 (C, C). Rows are classes, columns are predictions.
        val_counts: Confusion matrix of the last validation.

    Raises:
        FloatingPointError: If a term of the loss is NaN or infinite, in training or validation.
    """

    def __init__(
        self,
        network: nn.Module,
        regularizers: Iterable[Regularizer] = (),
        *,
        num_classes: int,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
        seed: int = 0,
        lds_eps: float = 1.0,
        reestimate_batch_norm: bool = False,
        record: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.network = network
        self.regularizers = nn.ModuleDict(by_unique_name(regularizers))
        self.seed = seed
        self.lds_eps = lds_eps
        self.reestimate_batch_norm = reestimate_batch_norm
        self.record = record
        self.confusion: Tensor | None = None
        self.val_counts: Tensor | None = None
        self._reports = last_reports()
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self.val_metrics = _metrics("val", num_classes)
        self.test_metrics = _metrics("test", num_classes)
        self.test_lds = MeanMetric()
        self.val_confusion, self.test_confusion = (MulticlassConfusionMatrix(num_classes) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        return self.network(x)

    # ------------------------------------------------------------------------------------------------------- training

    @refuse_stop_iteration
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        report = due_report(self.trainer)
        terms = self.terms(batch, report)
        refuse_not_finite(self.trainer, terms)
        total = torch.stack(list(terms.values())).sum()
        if report is not None:
            self._reports.append({name: value.detach() for name, value in report.items()})
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            values = {f"train/{name}": term.detach() for name, term in terms.items()}
            values |= {f"train/{name}": value for name, value in report.items()}
            self.log_dict(values | {"train/loss": total.detach(), "train/lr": rate}, batch_size=len(batch.labeled.x), sync_dist=True)
        return total

    def terms(self, batch: Batch, report: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Cross entropy and each regularizer's term, by name: scalars whose sum is this rank's part of the loss."""
        key = Key(self.seed, batch.micro_step, self.global_rank)
        supervised = batch.unlabeled is None
        on_labels = {name: r for name, r in self._regularizers().items() if supervised or r.needs_labels}
        on_all = {name: r for name, r in self._regularizers().items() if name not in on_labels}

        part, share = batch.labeled, self._share(batch.labeled)
        if on_labels:
            step = self._step(part, key, live=True, track=True, report=report)
            terms = {"cross_entropy": share * cross_entropy(step.clean.logits, _labels(part))}
            terms |= {name: share * r.term(step) for name, r in on_labels.items()}
            _scale(report, share)
        else:  # no regularizer needs a gradient with respect to these inputs, so a `Step` would only cost time
            with random_state(key.own("labeled"), part.x.device):
                terms = {"cross_entropy": share * cross_entropy(self.network(part.x), _labels(part))}
        if on_all and batch.unlabeled is not None:
            step = self._step(batch.unlabeled, key, live=live(on_all.values()), report=report)
            share = self._share(batch.unlabeled)
            before = dict(report or {})
            terms |= {name: share * r.term(step) for name, r in on_all.items()}
            _scale(report, share, without=before)
        return terms

    def _step(self, part: Part, key: Key, **options: Any) -> Step:
        return Step(
            self.network,
            part.x,
            part.y,
            key=key,
            index=part.index,
            start=part.start,
            total=part.total,
            view=part.view,
            class_dim=1,  # as the cross entropy and the metrics
            **options,
        )

    def _share(self, part: Part) -> float:
        """Weight of this rank's mean. Slices differ by a row; with this weight the mean over ranks is the mean over the global batch."""
        return len(part.x) * self._world_size / part.total

    @property
    def _world_size(self) -> int:
        return self._trainer.world_size if self._trainer is not None else 1

    def on_fit_start(self) -> None:
        for regularizer in self._regularizers().values():
            regularizer.on_fit_start(self.network)

    def on_train_end(self) -> None:
        explain(self.trainer, self._regularizers(), self._reports)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        refuse_gradients_not_finite(self.trainer, self.network)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        for regularizer in self._regularizers().values():
            regularizer.on_optimizer_step_end(self.network)

    def _regularizers(self) -> dict[str, Regularizer]:
        return {name: r for name, r in self.regularizers.items() if isinstance(r, Regularizer)}

    def configure_optimizers(self) -> Any:
        optimizer, schedules = self.make_optimizer(self.network.parameters())
        return [optimizer], [{"scheduler": schedule, "interval": "step"} for schedule in schedules]

    def make_optimizer(
        self, parameters: Iterable[nn.Parameter]
    ) -> tuple[torch.optim.Optimizer, list[torch.optim.lr_scheduler.LRScheduler]]:
        """The optimizer of some parameters, and the schedule of its rate, or none."""
        optimizer = self._make_optimizer(parameters)
        return optimizer, [] if self._make_scheduler is None else [self._make_scheduler(optimizer)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["record"] = self.record

    # ----------------------------------------------------------------------------------------------------- evaluation

    def on_validation_epoch_start(self) -> None:
        self._prepare_evaluation()

    def on_test_epoch_start(self) -> None:
        self._prepare_evaluation()

    def _prepare_evaluation(self) -> None:
        # Not in a callback's hook: callbacks run before the module's hooks, and one of them may swap in averaged weights.
        if self.reestimate_batch_norm:
            inputs = self.trainer.datamodule.training_inputs()  # pyright: ignore[reportAttributeAccessIssue]
            reestimate_batch_norm(self.network, (x.to(self.dtype) if x.is_floating_point() else x for x in inputs))

    @refuse_stop_iteration
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = as_classes(self.network(x))
        if batch_idx == 0 and (logits >= 0).all() and torch.allclose(logits.sum(1), logits.new_ones(()), atol=1e-2):
            warnings.warn(
                f"the outputs of {type(self.network).__name__} must be logits, got values >= 0 that sum to 1, as after a softmax: remove "
                "the softmax",
                stacklevel=1,
            )
        log_probabilities = _log_probabilities(logits)
        self.val_metrics.update(log_probabilities, y)
        self.val_confusion.update(log_probabilities, y)

    def on_validation_epoch_end(self) -> None:
        values = self.val_metrics.compute()
        self.val_metrics.reset()
        self.val_counts = self.val_confusion.compute().cpu()
        self.val_confusion.reset()
        if not self.trainer.sanity_checking:  # the sanity check runs an untrained network, whose outputs may be anything
            refuse_not_finite(self.trainer, {"val/cross_entropy": values["val/cross_entropy"]})
        self.log_dict(values)

    @refuse_stop_iteration
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        log_probabilities = _log_probabilities(self.network(x))
        self.test_metrics.update(log_probabilities, y)
        self.test_confusion.update(log_probabilities, y)
        # The random direction of a row follows from the row's position in the batch of all ranks.
        lengths = torch.as_tensor(self.all_gather(torch.tensor(len(x), device=x.device))).flatten().tolist()
        key, start = Key(0, batch_idx, self.global_rank), sum(lengths[: self.global_rank])
        for part in x.tensor_split(-(-len(x) // ROWS_WITH_GRAPH)):
            lds = local_distributional_smoothness(
                self.network, part, eps=self.lds_eps, key=key, class_dim=1, start=start, total=sum(lengths)
            )
            self.test_lds.update(lds)
            start += len(part)

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.test_metrics.compute() | {"test/lds": self.test_lds.compute()})
        self.confusion = self.test_confusion.compute().cpu()
        for metric in (self.test_metrics, self.test_lds, self.test_confusion):
            metric.reset()


def _scale(report: dict[str, Tensor] | None, share: float, *, without: Iterable[str] = ()) -> None:
    """Weight this rank's diagnostics by its share of the rows, so that their mean over ranks is the mean over the global batch."""
    if report is not None:
        report |= {name: share * value for name, value in report.items() if name not in set(without)}


class CrossEntropy(Metric):
    """Mean cross entropy over all examples seen, from log-probabilities or logits (N, C) and labels (N,)."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.total += cross_entropy(preds, target) * len(target)
        self.count += len(target)

    def compute(self) -> Tensor:
        return (self.total / self.count).float()


def _metrics(stage: str, num_classes: int) -> MetricCollection:
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "calibration_error": MulticlassCalibrationError(num_classes, n_bins=15),
        "cross_entropy": CrossEntropy(),
    }
    return MetricCollection(metrics, prefix=f"{stage}/", compute_groups=False)


def _log_probabilities(logits: Tensor) -> Tensor:
    # Not logits: torchmetrics treats logits that happen to be in [0, 1] as probabilities.
    return as_classes(logits).log_softmax(1)


def _labels(part: Part) -> Tensor:
    assert part.y is not None, "the labelled part of a batch has labels"
    return part.y
