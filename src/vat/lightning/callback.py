"""Any regularizer on any LightningModule."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import partial, update_wrapper
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from vat.lightning.training import due_report, explain, refuse_gradients_not_finite, refuse_not_finite
from vat.regularizers import Regularizer, by_unique_name, live
from vat.step import Key, Step


def first_tensors(batch: Any) -> tuple[Tensor, Tensor | None]:
    """The first tensor of a floating dtype in a batch (a tensor, or nested sequences and mappings), and the first of integers."""
    found = list(_tensors(batch))
    floating = [t for t in found if t.is_floating_point()]
    if not floating:
        raise ValueError("the batch holds no tensor of a floating dtype: name the inputs by RegularizerCallback(inputs=function)")
    x, *others = floating
    if any(t.dim() > 1 and t.shape[1:] == x.shape[1:] for t in others):  # labelled and unlabelled rows, two views
        warnings.warn(
            "the batch holds several tensors that may be inputs, and the first is taken: name what is meant, as "
            "RegularizerCallback(VAT(eps=2.0), inputs=lambda batch: torch.cat([batch['labeled'][0], batch['unlabeled']]))",
            stacklevel=2,
        )
    return x, next((t for t in found if not t.is_floating_point() and t.dtype != torch.bool and t.dim() and len(t) == len(x)), None)


class RegularizerCallback(pl.Callback):
    """Adds regularizers to the loss that a LightningModule's `training_step` returns, and logs them; the module is not edited.

        Trainer(callbacks=[RegularizerCallback(VAT(eps=2.0))])

    Works with automatic optimization, under DDP, gradient accumulation and mixed precision; a micro-batch's term counts as its loss does.

    Args:
        regularizers: one or several.
        inputs: batch -> the inputs (N, …), or (inputs, labels) for regularizers that need labels.
        forward: (module, inputs) -> logits; the module's own `forward` if None.
    """

    def __init__(
        self,
        *regularizers: Regularizer,
        inputs: Callable[[Any], Tensor | tuple[Tensor, Tensor | None]] = first_tensors,
        forward: Callable[[pl.LightningModule, Tensor], Tensor] | None = None,
    ):
        if not regularizers:
            raise ValueError("RegularizerCallback() adds nothing: name a regularizer, as RegularizerCallback(VAT(eps=2.0))")
        self.regularizers = nn.ModuleDict(by_unique_name(regularizers))
        self.inputs = inputs
        self.forward = forward
        self._num_updates = 0
        self._restored = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put itself between the trainer and the module's `training_step`."""
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{type(pl_module).__name__} optimizes by hand, so there is no returned loss to add to: "
                "call the regularizer in its training_step"
            )
        self.regularizers.to(pl_module.device)
        for regularizer in self._regularizers().values():
            if trainer.global_step == 0 and not self._restored:
                regularizer.reset()  # it may have served another run
            regularizer.on_fit_start(pl_module)
        self._restored = False
        training_step = pl_module.training_step
        if "dataloader_iter" in inspect.signature(training_step).parameters:
            raise ValueError(f"{type(pl_module).__name__}.training_step draws its batches itself: call the regularizer in it")

        def regularized(batch: Any, *args: Any, **kwargs: Any) -> Any:
            output = training_step(batch, *args, **kwargs)
            return self._added(trainer, pl_module, batch, output) if trainer.training else output  # a validation_step may call it, too

        pl_module.training_step = _Regularized(regularized, training_step, pl_module.__dict__.get("training_step"))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._num_updates = trainer.global_step  # restored by now, in a run that goes on

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        refuse_gradients_not_finite(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        explain(trainer, self._regularizers())

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the module as it was, also after an exception."""
        # Through all wrappers at once, for where there are several callbacks, the first comes first.
        while isinstance(step := pl_module.__dict__.get("training_step"), _Regularized):
            del pl_module.training_step
            if step.replaced is not None:
                pl_module.training_step = step.replaced

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > self._num_updates:  # not every batch ends an accumulation
            self._num_updates = trainer.global_step
            for regularizer in self._regularizers().values():
                regularizer.on_optimizer_step_end(pl_module)

    @property
    def state_key(self) -> str:
        """Names what it carries, so that two of these callbacks can be restored."""
        return self._generate_state_key(regularizers=list(self.regularizers))

    def state_dict(self) -> dict[str, Any]:
        return self.regularizers.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.regularizers.load_state_dict(state_dict)
        self._restored = True

    def _added(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, output: Any) -> Any:
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if loss is None:  # the module skips this batch, or Lightning says what is missing
            return output
        loss = loss.squeeze()
        if loss.dim():
            raise ValueError(f"training_step returned a loss of shape {tuple(loss.shape)}, to which nothing can be added: return its mean")
        report = due_report(trainer)
        terms = self._terms(trainer, pl_module, batch, report)
        refuse_not_finite(trainer, {"loss": loss, **terms})
        if report is not None:
            values = {name: term.detach() for name, term in terms.items()} | report
            pl_module.log_dict({f"train/{name}": value for name, value in values.items()}, batch_size=1, sync_dist=True)
        total = loss + torch.stack(list(terms.values())).sum()
        return {**output, "loss": total} if isinstance(output, Mapping) else total

    def _terms(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, report: dict[str, Tensor] | None) -> dict[str, Tensor]:
        found = self.inputs(batch)
        x, y = found if isinstance(found, tuple) else (found, None)
        regularizers = self._regularizers()
        step = Step(
            pl_module if self.forward is None else partial(self.forward, pl_module),
            x,
            y,
            module=pl_module,
            key=Key(torch.initial_seed(), trainer.fit_loop.epoch_loop.total_batch_idx, trainer.global_rank),
            start=trainer.global_rank * len(x),
            total=trainer.world_size * len(x),
            live=live(regularizers.values()),
            report=report,
        )
        return {name: regularizer.term(step) for name, regularizer in regularizers.items()}

    def _regularizers(self) -> dict[str, Regularizer]:
        return {name: r for name, r in self.regularizers.items() if isinstance(r, Regularizer)}


class _Regularized:
    """What takes the place of a `training_step`. A copy of the module has the module's own again, bound to the copy.

    Args:
        function: what is called.
        training_step: the module's, or another of these around it.
        replaced: what stood in the instance's place; None, as a rule, for a method is no entry of the instance.
    """

    def __init__(self, function: Callable[..., Any], training_step: Callable[..., Any], replaced: Any):
        self.own = training_step.own if isinstance(training_step, _Regularized) else training_step
        update_wrapper(self, self.own)  # Lightning reads from the signature what to hand in
        self.function = function
        self.replaced = replaced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return deepcopy(self.own, memo)

    def __reduce__(self) -> Any:
        return self.own.__reduce__()


def _tensors(batch: Any) -> Iterable[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _tensors(value)
