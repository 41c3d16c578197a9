"""Regularizers in the Trainer of Hugging Face's transformers. The library is imported only when it is used."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vat.regularizers import Regularizer, by_unique_name, live
from vat.step import Key, Step


def add_regularizers(
    trainer: Any,
    *regularizers: Regularizer,
    at: str | None = None,
    mask: str | None = "attention_mask",
    output_mask: Callable[[Mapping[str, Any]], Tensor] | None = None,
    class_dim: int | None = None,
) -> None:
    """Add regularizers to the loss of a `transformers.Trainer` and log them. The model does not change.

        trainer = Trainer(model, args, train_dataset=texts)
        add_regularizers(trainer, VAT(eps=1.0))
        trainer.train()

    This works with any subclass, gradient accumulation, mixed precision and several processes. Evaluation does not change.

    Args:
        trainer: Trainer, before its `train()`.
        regularizers: One or several. The trainer's checkpoints keep their schedules, but no other state.
        at: What to perturb: the name of a layer, whose output is perturbed, or of an input of floats, as "pixel_values". If None: the only
            input of floats, otherwise the output of the model's input embeddings.
        mask: Name of the input that is 1 where tokens count; None if all count.
        output_mask: Function from the batch to the mask of the outputs, if it does not follow from `mask`, as for a decoder's outputs:
            `lambda batch: batch["labels"] != -100`.
        class_dim: Dimension of the outputs with the classes; see `Step`.

    Raises:
        ValueError: If there is no regularizer. In training, if `at` is not found.
    """
    if not regularizers:
        raise ValueError("add_regularizers(trainer) got no regularizer: pass one, as add_regularizers(trainer, VAT(eps=1.0))")
    named, compute_loss, log, values = by_unique_name(regularizers), trainer.compute_loss, trainer.log, {}

    def regularized(model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        labels = inputs.get("labels")  # before compute_loss: a label smoother removes them
        call = _without_labels(trainer.accelerator.unwrap_model(model), inputs)
        counted = None if output_mask is None else output_mask(inputs)
        output = compute_loss(model, inputs, *args, **kwargs)
        if not (model.training and torch.is_grad_enabled()):
            return output
        step = _step(trainer, model, call, labels, at, mask, output_mask=counted, class_dim=class_dim, live=live(named.values()))
        terms = {name: regularizer.term(step) for name, regularizer in named.items()}
        for regularizer in named.values():
            regularizer.through_checkpoints(regularizer.first_call, step)
        values.update({name: term.detach() for name, term in terms.items()})
        total = torch.stack(list(terms.values())).sum() / _divisor(trainer, args, kwargs)
        return (output[0] + total, *output[1:]) if isinstance(output, tuple) else output + total

    def logged(logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        log({**logs, **{name: value.item() for name, value in values.items()}} if "loss" in logs else logs, *args, **kwargs)

    trainer.compute_loss = regularized
    trainer.log = logged
    trainer.add_callback(_follower(trainer, named))


def _without_labels(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The model's inputs without labels, from which it would compute its loss. A decoder that reads them gets its own inputs instead."""
    call = {name: value for name, value in inputs.items() if name != "labels"}
    shifted = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shifted is not None and "labels" in inputs and not {"decoder_input_ids", "decoder_inputs_embeds"} & call.keys():
        call["decoder_input_ids"] = shifted(labels=inputs["labels"])
    return call


def _step(
    trainer: Any,
    model: nn.Module,
    call: Mapping[str, Any],
    labels: Tensor | None,
    at: str | None,
    mask: str | None,
    **of_step: Any,
) -> Step:
    inner = trainer.accelerator.unwrap_model(model)
    if at is None:
        floating = [name for name, value in call.items() if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1]
        place = floating[0] if len(floating) == 1 else inner.get_input_embeddings()
    else:
        place = dict(inner.named_modules()).get(at, at)
        if place is at and at not in call:
            raise ValueError(f"at={at!r} is not a layer of {type(inner).__name__}: choose a layer, or one of its inputs {', '.join(call)}")
    rank, world = trainer.args.process_index, trainer.args.world_size
    key = Key(trainer.args.seed, _next_number(trainer), rank)
    counted = call.get(mask) if mask is not None and not (isinstance(place, str) and call[place].dim() > 3) else None
    step = Step(model, call, labels, at=place, mask=counted, key=key, **of_step)
    step.start, step.total = rank * len(step.x), world * len(step.x)
    return step


def _next_number(trainer: Any) -> int:
    """Number of this micro-batch, from the update and the batch in it. It is the same after a restart."""
    update, batch = trainer.__dict__.get("_micro_batch_of_vat", (-1, 0))
    batch = batch + 1 if update == trainer.state.global_step else 0
    trainer._micro_batch_of_vat = (trainer.state.global_step, batch)
    return trainer.state.global_step * trainer.args.gradient_accumulation_steps + batch


def _divisor(trainer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """Divisor of a mean over a micro-batch: the number of micro-batches if the trainer does not divide the loss by it, otherwise 1."""
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    if scaled is None:
        counted = kwargs.get("num_items_in_batch", args[1] if len(args) > 1 else None)
        scaled = (trainer.model_accepts_loss_kwargs and counted is not None) or trainer.compute_loss_func is not None
    return trainer.current_gradient_accumulation_steps if scaled else 1


def _follower(trainer: Any, named: Mapping[str, Regularizer]) -> Any:
    from transformers import TrainerCallback  # pyright: ignore[reportMissingImports]  # no dependency of the core

    class Follower(TrainerCallback):
        """Calls the regularizers' hooks at the start and after each update."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for regularizer in named.values():
                regularizer.to(args.device)
                regularizer.reset()
                regularizer.num_updates = state.global_step
                regularizer.on_fit_start(trainer.accelerator.unwrap_model(kwargs["model"]))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for regularizer in named.values():
                regularizer.on_optimizer_step_end(trainer.accelerator.unwrap_model(kwargs["model"]))

    return Follower()
