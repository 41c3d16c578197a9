"""The state of a training that a checkpoint holds, compared with what this run would save: torch and Lightning restore what they find."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from vat.lightning.classifier import Classifier
from vat.lightning.history import COUNTS
from vat.runs.text import brief


def refuse_foreign_state(saved: dict[str, Any], path: Path, classifier: Classifier, trainer: pl.Trainer) -> None:
    """Refuse a state that is not of this optimizer, this schedule and this loop. A fused optimizer would read beyond a short tensor.

    Args:
        saved: The checkpoint.
        path: Where it is.
        classifier: With the network, the optimizer and the schedule of the run.
        trainer: Of the run, before `fit`.

    Raises:
        ValueError: Names the first difference.
    """
    try:
        _check(saved, classifier, trainer)
    except _DifferentError as error:
        raise ValueError(f"{path} does not hold the state of such a run ({error}): take another, or start anew") from error


class _DifferentError(ValueError):
    pass


def _check(saved: dict[str, Any], classifier: Classifier, trainer: pl.Trainer) -> None:
    parameters = list(classifier.network.parameters())
    own_optimizer, own_schedules = _stepped(classifier, parameters)
    (found,) = _items(saved.get("optimizer_states"), "optimizer_states", 1)
    _like(_part(found, "param_groups"), own_optimizer["param_groups"], "param_groups", flags=True)
    states = _part(found, "state")
    for number in states if isinstance(states, dict) else _refuse(states, "state"):
        if number not in own_optimizer["state"]:
            raise _DifferentError(f"the optimizer has no parameter {brief(number)}")
        own = {k: _of_parameter(value, parameters[number]) for k, value in own_optimizer["state"][number].items()}
        _like(states[number], own, f"state of parameter {number}")
    _like(saved.get("lr_schedulers"), own_schedules, "lr_schedulers")
    for state, own in zip(saved["lr_schedulers"], own_schedules, strict=True):
        settings = ((classifier.record or {}).get("config") or {}).get("scheduler") or {}
        if changed := [key for key in settings if key in own and key != "last_epoch" and state[key] != own[key]]:
            raise _DifferentError(f"{changed[0]} of its schedule is {brief(state[changed[0]])}")

    fit = _part(saved.get("loops"), "fit_loop")
    own = trainer.fit_loop.state_dict()
    for key in own.keys() - {"state_dict"}:
        _like(_part(fit, key), own[key], key)
    steps = fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
    if steps != saved["global_step"]:
        raise _DifferentError(f"it says to be of step {brief(saved['global_step'])} and of step {steps}")
    loaders = _part(fit, "state_dict")
    if loaders:
        _like(_part(loaders, "combined_loader"), [{"micro_step": 0}], "combined_loader")
    counts = saved.get(COUNTS, {})
    _like(counts, dict.fromkeys(counts if isinstance(counts, dict) else (), 0), COUNTS)


def _stepped(classifier: Classifier, parameters: list[nn.Parameter]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the optimizer of a run and its schedules save after a step, with parameters of one number each."""
    tiny = [nn.Parameter(torch.zeros([1] * p.ndim, dtype=p.dtype), requires_grad=p.requires_grad) for p in parameters]
    for parameter in tiny:
        parameter.grad = torch.zeros_like(parameter)
    optimizer, schedules = classifier.make_optimizer(tiny)
    step: Callable[..., Any] = optimizer.step
    step(lambda: torch.zeros(()))  # a closure, which some optimizers ask for
    return optimizer.state_dict(), [schedule.state_dict() for schedule in schedules]


def _of_parameter(own: Any, parameter: nn.Parameter) -> Any:
    """What an optimizer saves of a parameter, which it does of one with as many dimensions of length 1: of its shape, or of none."""
    of_its_shape = isinstance(own, Tensor) and own.ndim == parameter.ndim and own.ndim
    return own.expand(parameter.shape) if of_its_shape else own


def _like(found: Any, own: Any, name: str, *, flags: bool = False) -> None:
    """Refuse what is not of the kind, the length and the shape of one's own. With `flags`, true and false must be equal too."""
    match own:
        case dict():
            if not isinstance(found, dict) or found.keys() != own.keys():
                _refuse(found, name)
            for key, value in own.items():
                _like(found[key], value, f"{name}.{key}", flags=flags)
        case list() | tuple():
            for number, (one, value) in enumerate(zip(_items(found, name, len(own)), own, strict=True)):
                _like(one, value, f"{name}[{number}]", flags=flags)
        case Tensor():
            same = isinstance(found, Tensor) and found.shape == own.shape and found.is_floating_point() == own.is_floating_point()
            if not same or found.is_complex():
                _refuse(tuple(found.shape) if isinstance(found, Tensor) else found, name)
        case bool():
            if type(found) is not bool or (flags and found != own):
                _refuse(found, name)
        case int() | float():
            if type(found) not in (int, float) or not math.isfinite(found) or (type(own) is int and found < 0):
                _refuse(found, name)
        case _:
            if found != own:
                _refuse(found, name)


def _items(found: Any, name: str, number: int) -> Any:
    return found if isinstance(found, list | tuple) and len(found) == number else _refuse(found, name)


def _part(found: Any, key: str) -> Any:
    return found[key] if isinstance(found, dict) and key in found else _refuse(None, key)


def _refuse(found: Any, name: str) -> Any:
    raise _DifferentError(f"{name} is {brief(found)}")
