"""Any regularizer on any LightningModule."""

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
    elif x.dim() < 2 and any(t.dim() > 1 for t in others):  # a weight, a fold
        raise ValueError(
            f"the first tensor of a floating dtype in the batch has shape {tuple(x.shape)}, and others have more dimensions: name the "
            "inputs by RegularizerCallback(inputs=function), or let training_step call the module itself"
        )
    return x, labels(found, len(x) if x.dim() else None)


def labels(batch: Any, rows: int | None) -> Tensor | None:
    """The first tensor of integers in a batch, of as many rows if that is known."""
    whole = (t for t in _tensors(batch) if not t.is_floating_point() and t.dtype != torch.bool and t.dim())
    return next((t for t in whole if rows is None or len(t) == rows), None)


class RegularizerCallback(pl.Callback):
    """Adds regularizers to the loss that a LightningModule's `training_step` returns, and logs them; the module is not edited.

        >>> from vat import VAT
        >>> callback = RegularizerCallback(VAT(eps=2.0))
        >>> trainer = pl.Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)

    Works with automatic optimization, under DDP, gradient accumulation and mixed precision; a micro-batch's term counts as its loss does.
    The network's call in `training_step` is repeated with what it was given there, so an augmentation or normalisation before it counts.
    A `training_step` that calls no `forward` of the module needs `network` or `inputs`, unless its batch holds one tensor of inputs.

        >>> callback = RegularizerCallback(VAT(eps=2.0), network="model", at="model.embeddings", mask="attention_mask")

    Args:
        regularizers: one or several.
        inputs: batch -> the inputs (N, …), or (inputs, labels) for regularizers that need labels. None to repeat the network's call.
        forward: (module, inputs) -> logits; the module's own `forward` if None.
        network: name of the part that `training_step` calls once; the module itself if None.
        at: what is perturbed: the name of a layer, of which the output is, or of an argument of the call, or its number; see `Step`.
        mask: name or number of the call's argument that is 1 where inputs count, or batch -> mask; see `Step`.
        class_dim: dimension of the outputs in which the classes lie; see `Step`.
    """

    def __init__(
        self,
        *regularizers: Regularizer,
        inputs: Callable[[Any], Tensor | tuple[Tensor, Tensor | None]] | None = None,
        forward: Callable[[pl.LightningModule, Tensor], Tensor] | None = None,
        network: str | None = None,
        at: str | int | None = None,
        mask: str | int | Callable[[Any], Tensor] | None = None,
        class_dim: int | None = None,
    ):
        if not regularizers:
            raise ValueError("RegularizerCallback() adds nothing: name a regularizer, as RegularizerCallback(VAT(eps=2.0))")
        self.regularizers = nn.ModuleDict(by_unique_name(regularizers))
        if (inputs is not None or forward is not None) and (network is not None or at is not None):
            raise ValueError("inputs and forward say what is called, and so do network and at: give one or the other")
        self.inputs = inputs
        self.forward = forward
        self.network = network
        self.at = at
        self.mask = mask
        self.class_dim = class_dim
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
            if not trainer.training:  # a validation_step may call it, too
                return training_step(batch, *args, **kwargs)
            with self._calls(pl_module) as calls:
                output = training_step(batch, *args, **kwargs)
            return self._added(trainer, pl_module, batch, calls, output)

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

    @contextmanager
    def _calls(self, pl_module: pl.LightningModule) -> Iterator[list["_Recorded"]]:
        """Within it the network's calls are written down."""
        calls: list[_Recorded] = []
        if self.inputs is not None or self.forward is not None:
            yield calls
            return
        if self.network is not None and self.network not in dict(pl_module.named_modules()):
            known = ", ".join(name for name, _ in pl_module.named_children())
            raise ValueError(f"network={self.network!r} is no part of {type(pl_module).__name__}, which has {known}")
        network = pl_module if self.network is None else pl_module.get_submodule(self.network)

        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.is_grad_enabled() and "log" not in vars(pl_module):  # another callback's passes are no calls of the step
                calls.append(_Recorded(Call(*args, **kwargs)))

        handle = network.register_forward_pre_hook(record, with_kwargs=True)
        try:
            yield calls
        finally:
            handle.remove()

    def _called(self, pl_module: pl.LightningModule, batch: Any, calls: Sequence["_Recorded"]) -> dict[str, Any]:
        """What a `Step` is made of."""
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
                f"training_step calls {self.network or 'the module'} {len(calls)} times, not once: name the part that it calls once, as "
                "RegularizerCallback(VAT(eps=2.0), network='model'), or the inputs, as inputs=lambda batch: batch[0]"
            )
        call = calls[0].unchanged()
        forward = pl_module if self.network is None else pl_module.get_submodule(self.network)
        at, x = self._at(pl_module, call)
        mask = self.mask(batch) if callable(self.mask) else None if self.mask is None else call[self.mask]
        rows = len(x) if isinstance(x, Tensor) else None
        return {"forward": forward, "x": x, "y": labels(batch, rows), "at": at, "mask": mask}

    def _at(self, pl_module: pl.LightningModule, call: Call) -> tuple[At | None, Any]:
        """What is perturbed, and what the network is called with."""
        if self.at is not None:
            layer = dict(pl_module.named_modules()).get(self.at) if isinstance(self.at, str) else None
            return layer or self.at, call
        arguments = {**dict(enumerate(call.args)), **call.kwargs}
        floating = [name for name, value in arguments.items() if isinstance(value, Tensor) and value.is_floating_point() and value.dim()]
        if len(floating) != 1:
            raise ValueError(
                f"the network is called with {len(floating)} tensors of a floating dtype, not one: name what is perturbed, as at='x', or a "
                "layer, as at='model.embeddings'"
            )
        return (None, call.args[0]) if list(arguments) == [0] else (floating[0], call)

    def _added(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, calls: list["_Recorded"], output: Any) -> Any:
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if loss is None:  # the module skips this batch, or Lightning says what is missing
            return output
        loss = loss.squeeze()
        if loss.dim():
            raise ValueError(f"training_step returned a loss of shape {tuple(loss.shape)}, to which nothing can be added: return its mean")
        report = due_report(trainer)
        with _unlogged(pl_module):
            terms = self._terms(trainer, pl_module, batch, report, calls)
        refuse_not_finite(trainer, {"loss": loss, **terms})
        if report is not None:
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
            class_dim=self.class_dim,
            key=Key(torch.initial_seed(), trainer.fit_loop.epoch_loop.total_batch_idx, trainer.global_rank),
            start=trainer.global_rank * n,
            total=trainer.world_size * n,
            live=live(regularizers.values()),
            report=report,
        )
        if not n:  # the rows of a layer's output
            step.start, step.total = trainer.global_rank * len(step.x), trainer.world_size * len(step.x)
        terms = {name: regularizer.term(step) for name, regularizer in regularizers.items()}
        for regularizer in regularizers.values():
            regularizer.through_checkpoints(regularizer.first_call, step)
        return terms

    def _regularizers(self) -> dict[str, Regularizer]:
        return {name: r for name, r in self.regularizers.items() if isinstance(r, Regularizer)}


class _Recorded:
    """A call of the network, as it was when it was made."""

    def __init__(self, call: Call):
        self.call = call
        self._versions = [(value, value._version) for value in _tensors([*call.args, *call.kwargs.values()]) if not value.is_inference()]

    def unchanged(self) -> Call:
        """The call, of which nothing was changed in place since."""
        if any(value._version != version for value, version in self._versions):
            raise ValueError("the network changes its inputs in place, so its call cannot be repeated: name them, inputs=lambda batch: …")
        return self.call


@contextmanager
def _unlogged(pl_module: pl.LightningModule) -> Iterator[None]:
    """Within it a `self.log` in `forward` logs nothing: it would count the passes of a regularizer, too."""
    own = vars(pl_module)
    replaced = {name: own[name] for name in ("log", "log_dict") if name in own}
    own["log"] = own["log_dict"] = lambda *_, **__: None
    try:
        yield
    finally:
        del own["log"], own["log_dict"]
        own.update(replaced)


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
