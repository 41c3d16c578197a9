"""Code of both the LightningModule and the callback: when diagnostics are due, what they mean, errors if the loss is not finite."""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from vat.evaluation.diagnosis import interpretation, looks_for_r
from vat.regularizers import Regularizer

log = logging.getLogger(__name__)

LAST_REPORTS = 10
"""Logged steps whose mean is judged at the end."""


def due_report(trainer: pl.Trainer) -> dict[str, Tensor] | None:
    """Make an empty report for the regularizers if the trainer passes the values of this step to its loggers, else None."""
    # Lightning's own rule: it drops values that are logged at any other step, and diagnostics cost seven forward passes.
    due = bool(trainer.loggers) and trainer._logger_connector.should_update_logs
    return {} if due else None


def last_reports() -> deque[dict[str, Tensor]]:
    """An empty list for the diagnostics of the last `LAST_REPORTS` logged steps."""
    return deque(maxlen=LAST_REPORTS)


def explain(trainer: pl.Trainer, regularizers: Mapping[str, Regularizer], reports: Sequence[Mapping[str, Tensor]]) -> None:
    """Warn if diagnostics show that a `VAT` does not work. The warnings have the names of the logs.

    Args:
        trainer: Of the run.
        regularizers: By name.
        reports: The diagnostics of the last logged steps. Their mean is judged, since those of one batch vary.
    """
    for name, regularizer in regularizers.items():
        if looks_for_r(regularizer) and trainer.is_global_zero:
            prefix = f"{name}/"
            keys = {key for report in reports for key in report if key.startswith(prefix)}
            values = {k.removeprefix(prefix): fmean(float(report[k]) for report in reports if k in report) for k in sorted(keys)}
            direction = getattr(regularizer.direction, "__name__", None)
            for sentence in interpretation(values, direction=direction):
                log.warning("%s: %s", name, sentence)


def refuse_gradients_not_finite(trainer: pl.Trainer, module: nn.Module) -> None:
    """Stop the run if a gradient is NaN or infinite, before the optimizer changes the weights.

    The loss can still be finite, for example with an infinite input before a tanh. float16 is not checked: its scaler skips such steps.

    Raises:
        FloatingPointError: If a gradient is not finite. The message names the step and the first such parameter.
    """
    if trainer.precision == "16-mixed":
        return
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    if torch.nn.utils.get_total_norm(found.values()).isfinite():  # cheap for the usual case: one pass, one number
        return
    name = next((name for name, grad in found.items() if not grad.isfinite().all()), None)
    if name is None:  # all gradients are finite, only the sum of their squares has overflowed
        return
    raise FloatingPointError(
        f"the gradient of {name} is not finite at optimizer step {trainer.global_step}, but the loss is finite. Look for NaN and infinity "
        f"in the inputs, or set trainer.gradient_clip_val and a lower learning rate. ckpt_path=... resumes from {_last_checkpoint(trainer)}"
    )


def refuse_not_finite(trainer: pl.Trainer, terms: dict[str, Tensor]) -> None:
    """Stop the run if a term of the loss is NaN or infinite, before the optimizer changes the weights.

    Raises:
        FloatingPointError: If a term is not finite. The message names the step, the term and the checkpoint to resume from.
    """
    values = torch.stack([term.detach() for term in terms.values()])
    if values.isfinite().all():
        return
    bad = ", ".join(f"{name} = {value:g}" for name, value in zip(terms, values.tolist(), strict=True))
    raise FloatingPointError(
        f"the loss is not finite at optimizer step {trainer.global_step}: {bad}. Look for such values in the inputs, or lower eps "
        f"(ckpt_path=... resumes from the last checkpoint: {_last_checkpoint(trainer)}). Or start again with a lower learning rate"
    )


def refuse_stop_iteration(step: Callable[..., Any]) -> Callable[..., Any]:
    """Make a StopIteration inside a step an error. Lightning takes it for the end of the data, and ends the epoch without a word.

    A network raises it, for example, with `next(self.layer.parameters())` if the layer has no parameters.
    """

    @wraps(step)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            return step(*args, **kwargs)
        except StopIteration as error:
            raise RuntimeError(f"{step.__name__}: a next() inside the network or a regularizer found nothing") from error

    return checked


def _last_checkpoint(trainer: pl.Trainer) -> str:
    callback = next(reversed(trainer.checkpoint_callbacks), None)
    return getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "") or "none was written yet"
