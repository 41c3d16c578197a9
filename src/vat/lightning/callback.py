"""A callback that adds regularizers to any LightningModule."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial, update_wrapper
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from vat.calls import At, Call
from vat.lightning.training import due_report, explain, last_reports, refuse_gradients_not_finite, refuse_not_finite
from vat.regularizers import Regularizer, by_unique_name, live
from vat.step import Key, Step


def first_tensors(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Find the first tensor of a floating dtype and the first of integers in a batch: a tensor, or nested sequences and mappings."""
    found = list(_tensors(batch))
    floating = [t for t in found if t.is_floating_point()]
    if not floating:
        raise ValueError("the batch contains no tensor of a floating dtype: give the inputs as RegularizerCallback(inputs=function)")
    x, *others = floating
    if any(t.dim() > 1 and t.shape[1:] == x.shape[1:] for t in others):  # labelled and unlabelled rows, two views
        warnings.warn(
            "the batch contains several tensors that may be inputs, and the first is used. Give the inputs, as "
            "RegularizerCallback(VAT(eps=2.0), inputs=lambda batch: torch.cat([batch['labeled'][0], batch['unlabeled']]))",
            stacklevel=2,
        )
    elif x.dim() < 2 and any(t.dim() > 1 for t in others):  # the first tensor is not the inputs: a weight, a fold
        raise ValueError(
            f"the first tensor of a floating dtype in the batch has shape {tuple(x.shape)}, but others have more dimensions. Give the "
            "inputs as RegularizerCallback(inputs=function), or call the module itself in training_step"
        )
    return x, labels(found, len(x) if x.dim() else None)


def labels(batch: Any, rows: int | None) -> Tensor | None:
    """Find the first tensor of integers in a batch. If `rows` is known, it must have as many rows."""
    whole = (t for t in _tensors(batch) if not t.is_floating_point() and t.dtype != torch.bool and t.dim())
    return next((t for t in whole if rows is None or len(t) == rows), None)


class RegularizerCallback(pl.Callback):
    """Add regularizers to the loss that a LightningModule's `training_step` returns, and log them. The module needs no edit.

        >>> from vat import VAT
        >>> callback = RegularizerCallback(VAT(eps=2.0))
        >>> trainer = pl.Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)

    It works with automatic optimization, DDP, gradient accumulation and mixed precision. The term of a micro-batch has the same weight as
    its loss. The callback repeats the network's call in `training_step` with the same arguments. An augmentation or normalisation before
    the call therefore has its effect. If `training_step` does not call the module's `forward`, give `network` or `inputs`. Without either,
    the batch must contain exactly one tensor of inputs.

        >>> callback = RegularizerCallback(VAT(eps=2.0), network="model", at="model.embeddings", mask="attention_mask")

    Args:
        regularizers: One or more regularizers.
        inputs: Function from the batch to the inputs (N, …), or to (inputs, labels) for regularizers that need labels. None: repeat the
            network's call.
        forward: Function (module, inputs) -> logits. None: the module's own `forward`.
        network: Name of the submodule that `training_step` calls once. None: the module itself.
        at: Tensor to perturb: the name of a layer, for its output, or the name or number of an argument of the call. See `Step`.
        mask: Name or number of the call's argument that is 1 for inputs that count, or a function from the batch to the mask. See `Step`.
        output_mask: Function from the batch to the mask of the outputs, if it does not follow from `mask`. See `Step`.
        class_dim: Dimension of the outputs that holds the classes. See `Step`.
    """

    def __init__(
        self,
        *regularizers: Regularizer,
        inputs: Callable[[Any], Tensor | tuple[Tensor, Tensor | None]] | None = None,
        forward: Callable[[pl.LightningModule, Tensor], Tensor] | None = None,
        network: str | None = None,
        at: str | int | None = None,
        mask: str | int | Callable[[Any], Tensor] | None = None,
        output_mask: Callable[[Any], Tensor] | None = None,
        class_dim: int | None = None,
    ):
        if not regularizers:
            raise ValueError("RegularizerCallback() has no regularizer: give one, as RegularizerCallback(VAT(eps=2.0))")
        self.regularizers = nn.ModuleDict(by_unique_name(regularizers))
        if (inputs is not None or forward is not None) and (network is not None or at is not None):
            raise ValueError("inputs or forward cannot be combined with network or at: give one pair or the other")
        self.inputs = inputs
        self.forward = forward
        self.network = network
        self.at = at
        self.mask = mask
        self.output_mask = output_mask
        self.class_dim = class_dim
        self._num_updates = 0
        self._reports = last_reports()
        self._restored = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wrap the module's `training_step`."""
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{type(pl_module).__name__} has automatic_optimization=False, so the callback cannot add to its loss: call the "
                "regularizer in training_step"
            )
        without = type(pl_module).forward is pl.LightningModule.forward and "forward" not in vars(pl_module)
        if self.forward is None and self.network is None and without:
            names = [name for name, _ in pl_module.named_children()] or ["net"]
            raise ValueError(
                f"{type(pl_module).__name__} has no forward: define it, or name the network that training_step calls, as "
                f"RegularizerCallback(…, network={names[0]!r})"
            )
        self.regularizers.to(pl_module.device)
        for regularizer in self._regularizers().values():
            if trainer.global_step == 0 and not self._restored:
                regularizer.reset()  # an earlier run may have used it
            regularizer.on_fit_start(pl_module)
        self._restored = False
        training_step = pl_module.training_step
        if "dataloader_iter" in inspect.signature(training_step).parameters:
            raise ValueError(f"{type(pl_module).__name__}.training_step takes dataloader_iter, not a batch: call the regularizer in it")

        def regularized(batch: Any, *args: Any, **kwargs: Any) -> Any:
            if not trainer.training:  # a validation_step may also call training_step
                return training_step(batch, *args, **kwargs)
            with self._calls(pl_module) as calls:
                output = training_step(batch, *args, **kwargs)
            return self._added(trainer, pl_module, batch, calls, output)

        pl_module.training_step = _Regularized(regularized, training_step, pl_module.__dict__.get("training_step"))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._reports = last_reports()
        self._num_updates = trainer.global_step  # in a resumed run, Lightning has restored it before this hook

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        refuse_gradients_not_finite(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        explain(trainer, self._regularizers(), self._reports)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the module's `training_step`, also after an exception."""
        # The loop removes the wrappers of all callbacks: the first callback's teardown runs first, but its wrapper is the innermost.
        while isinstance(step := pl_module.__dict__.get("training_step"), _Regularized):
            del pl_module.training_step
            if step.replaced is not None:
                pl_module.training_step = step.replaced

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > self._num_updates:  # with gradient accumulation, most batches make no optimizer step
            self._num_updates = trainer.global_step
            for regularizer in self._regularizers().values():
                regularizer.on_optimizer_step_end(pl_module)

    @property
    def state_key(self) -> str:
        """Key of the callback's state: it holds the regularizers' names, so that a trainer can have several such callbacks."""
        return self._generate_state_key(regularizers=list(self.regularizers))

    def state_dict(self) -> dict[str, Any]:
        return self.regularizers.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.regularizers.load_state_dict(state_dict)
        self._restored = True

    @contextmanager
    def _calls(self, pl_module: pl.LightningModule) -> Iterator[list["_Recorded"]]:
        """Record the network's calls within the block."""
        calls: list[_Recorded] = []
        if self.inputs is not None or self.forward is not None:
            yield calls
            return
        if self.network is not None and self.network not in dict(pl_module.named_modules()):
            known = ", ".join(name for name, _ in pl_module.named_children())
            raise ValueError(f"network={self.network!r} is no submodule of {type(pl_module).__name__}: choose one of {known}")
        network = pl_module if self.network is None else pl_module.get_submodule(self.network)

        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.is_grad_enabled() and "log" not in vars(pl_module):  # skip the passes of another callback
                calls.append(_Recorded(Call(*args, **kwargs)))

        handle = network.register_forward_pre_hook(record, with_kwargs=True)
        try:
            yield calls
        finally:
            handle.remove()

    def _called(self, pl_module: pl.LightningModule, batch: Any, calls: Sequence["_Recorded"]) -> dict[str, Any]:
        """Arguments of a `Step`."""
        found = None
        if self.inputs is not None or self.forward is not None or not (calls or self.network or self.at is not None):
            found = (self.inputs or first_tensors)(batch)
        if found is not None:
            x, y = found if isinstance(found, tuple) else (found, None)
            forward = pl_module if self.forward is None else partial(self.forward, pl_module)
            mask = self.mask(batch) if callable(self.mask) else None
            return {"forward": forward, "x": x, "y": y, "mask": mask}
        if len(calls) != 1:
            raise ValueError(
                f"training_step must call {self.network or 'the module'} once, got {len(calls)} calls. Name a submodule that it calls "
                "once, as RegularizerCallback(VAT(eps=2.0), network='model'), or give the inputs, as inputs=lambda batch: batch[0]"
            )
        call = calls[0].unchanged()
        forward = pl_module if self.network is None else pl_module.get_submodule(self.network)
        at, x = self._at(pl_module, call)
        mask = self.mask(batch) if callable(self.mask) else None if self.mask is None else call[self.mask]
        rows = len(x) if isinstance(x, Tensor) else None
        return {"forward": forward, "x": x, "y": labels(batch, rows), "at": at, "mask": mask}

    def _at(self, pl_module: pl.LightningModule, call: Call) -> tuple[At | None, Any]:
        """Tensor to perturb (`at`), and the network's input or call."""
        if self.at is not None:
            layer = dict(pl_module.named_modules()).get(self.at) if isinstance(self.at, str) else None
            return layer or self.at, call
        floating = [
            name for name, value in call.arguments.items() if isinstance(value, Tensor) and value.is_floating_point() and value.dim()
        ]
        if len(floating) != 1:
            raise ValueError(
                f"the network's call must have one tensor of a floating dtype, got {len(floating)}. Name the argument to perturb, as "
                "at='x', or a layer, as at='model.embeddings'"
            )
        return (None, call.args[0]) if [*call.arguments] == [0] else (floating[0], call)

    def _added(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, calls: list["_Recorded"], output: Any) -> Any:
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if loss is None:  # the module skips this batch; a missing "loss" key is refused by Lightning
            return output
        loss = loss.squeeze()
        if loss.dim():
            raise ValueError(f"training_step must return a scalar loss, got shape {tuple(loss.shape)}: return its mean")
        report = due_report(trainer)
        with _unlogged(pl_module):
            terms = self._terms(trainer, pl_module, batch, report, calls)
        refuse_not_finite(trainer, {"loss": loss, **terms})
        if report is not None:
            self._reports.append({name: value.detach() for name, value in report.items()})
            values = {name: term.detach() for name, term in terms.items()} | report
            pl_module.log_dict({f"train/{name}": value for name, value in values.items()}, batch_size=1, sync_dist=True)
        total = loss + torch.stack(list(terms.values())).sum()
        return {**output, "loss": total} if isinstance(output, Mapping) else total

    def _terms(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        report: dict[str, Tensor] | None,
        calls: Sequence["_Recorded"] = (),
    ) -> dict[str, Tensor]:
        called, regularizers = self._called(pl_module, batch, calls), self._regularizers()
        n = len(called["x"]) if isinstance(called["x"], Tensor) else 0
        step = Step(
            **called,
            module=pl_module,
            output_mask=None if self.output_mask is None else self.output_mask(batch),
            class_dim=self.class_dim,
            key=Key(torch.initial_seed(), trainer.fit_loop.epoch_loop.total_batch_idx, trainer.global_rank),
            start=trainer.global_rank * n,
            total=trainer.world_size * n,
            live=live(regularizers.values()),
            report=report,
        )
        if not n:  # the input is a call or a layer's output, whose number of rows only the step knows
            step.start, step.total = trainer.global_rank * len(step.x), trainer.world_size * len(step.x)
        terms = {name: regularizer.term(step) for name, regularizer in regularizers.items()}
        for regularizer in regularizers.values():
            regularizer.through_checkpoints(regularizer.first_call, step)
        return terms

    def _regularizers(self) -> dict[str, Regularizer]:
        return {name: r for name, r in self.regularizers.items() if isinstance(r, Regularizer)}


class _Recorded:
    """A recorded call of the network."""

    def __init__(self, call: Call):
        self.call = call
        self._versions = [(value, value._version) for value in _tensors([*call.args, *call.kwargs.values()]) if not value.is_inference()]

    def unchanged(self) -> Call:
        """The call.

        Raises:
            ValueError: If a tensor of the call has been changed in place since.
        """
        if any(value._version != version for value, version in self._versions):
            raise ValueError("the network changes its inputs in place, so its call cannot be repeated: give inputs=lambda batch: …")
        return self.call


@contextmanager
def _unlogged(pl_module: pl.LightningModule) -> Iterator[None]:
    """Disable the module's `log` within the block. A `self.log` in `forward` would also log the passes of a regularizer."""
    own = vars(pl_module)
    replaced = {name: own[name] for name in ("log", "log_dict") if name in own}
    own["log"] = own["log_dict"] = lambda *_, **__: None
    try:
        yield
    finally:
        del own["log"], own["log_dict"]
        own.update(replaced)


class _Regularized:
    """The wrapper of a `training_step`. A copy of the module gets the module's own method again, bound to the copy.

    Args:
        function: Function to call.
        training_step: The module's method, or another wrapper of it.
        replaced: Earlier entry `training_step` of the instance. Usually None, because a method is no entry of the instance.
    """

    def __init__(self, function: Callable[..., Any], training_step: Callable[..., Any], replaced: Any):
        self.own = training_step.own if isinstance(training_step, _Regularized) else training_step
        update_wrapper(self, self.own)  # Lightning reads the signature to choose the arguments
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
