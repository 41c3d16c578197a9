"""What the LightningModule and the callback share: when diagnostics are due, what they mean, the refusal of a loss that is not finite."""

import logging
from collections.abc import Mapping

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from vat.evaluation.diagnosis import interpretation, looks_for_r
from vat.regularizers import Regularizer

log = logging.getLogger(__name__)


def due_report(trainer: pl.Trainer) -> dict[str, Tensor] | None:
    """An empty report for regularizers to fill where the trainer hands this step's values to its loggers, else None."""
    # Lightning's own question: values logged at any other step are dropped, and diagnostics cost seven forward passes.
    due = bool(trainer.loggers) and trainer._logger_connector.should_update_logs
    return {} if due else None


def explain(trainer: pl.Trainer, regularizers: Mapping[str, Regularizer]) -> None:
    """Warn, in words, where the diagnostics that were logged last say that a `VAT` does not work; its names are those in the logs."""
    for name, regularizer in regularizers.items():
        if looks_for_r(regularizer) and trainer.is_global_zero:
            prefix = f"train/{name}/"
            values = {k.removeprefix(prefix): float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}
            direction = getattr(regularizer.direction, "__name__", None)
            for sentence in interpretation(values, direction=direction):
                log.warning("%s: %s", name, sentence)


def refuse_gradients_not_finite(trainer: pl.Trainer, module: nn.Module) -> None:
    """Stop the run at a gradient that is NaN or infinite, before it reaches the weights; the loss may be finite all the same.

    An infinite input behind a tanh is an example. float16 is left out: its scaler skips such steps.

    Raises:
        FloatingPointError: names the step and the first such parameter.
    """
    if trainer.precision == "16-mixed":
        return
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    if torch.nn.utils.get_total_norm(found.values()).isfinite():  # one pass and one number for the usual case
        return
    name = next((name for name, grad in found.items() if not grad.isfinite().all()), None)
    if name is None:  # the sum of squares has overflowed
        return
    raise FloatingPointError(
        f"the gradient of {name} is not finite at optimizer step {trainer.global_step}, though the loss is. Look for NaN and infinity in "
        f"the inputs, or set trainer.gradient_clip_val and a lower learning rate (ckpt_path=... resumes from {_last_checkpoint(trainer)})"
    )


def refuse_not_finite(trainer: pl.Trainer, terms: dict[str, Tensor]) -> None:
    """Stop the run at a term that is NaN or infinite, before it reaches the weights.

    Raises:
        FloatingPointError: names the step, the term and the checkpoint to go on from.
    """
    values = torch.stack([term.detach() for term in terms.values()])
    if values.isfinite().all():
        return
    bad = ", ".join(f"{name} = {value:g}" for name, value in zip(terms, values.tolist(), strict=True))
    raise FloatingPointError(
        f"the loss is not finite at optimizer step {trainer.global_step}: {bad}. Look for such values in the inputs, or lower eps "
        f"(ckpt_path=... goes on from the last checkpoint: {_last_checkpoint(trainer)}) or, from the start, the learning rate"
    )


def _last_checkpoint(trainer: pl.Trainer) -> str:
    callback = next(reversed(trainer.checkpoint_callbacks), None)
    return getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "") or "none was written yet"
