"""The interface of every regularizer."""

import math
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from vat.network import NO_GRADIENT, Forward, Modules
from vat.step import Step

REASONS = {
    "use_reentrant": (
        "torch.utils.checkpoint cannot give them with use_reentrant=True: say use_reentrant=False, or take VAT(direction='random')"
    ),
    "not currently support double backward": (
        "What torch.compile has compiled cannot be differentiated twice, as direction 'exact' and gradient_through_r do: call the "
        "regularizer outside of torch.compile, or take direction='random_margin'"
    ),
    "not have been used in the graph": NO_GRADIENT[0].upper() + NO_GRADIENT[1:],
}
"""What to do about errors of torch, by words in them."""


class Regularizer(nn.Module):
    """A term added to the loss of a training step: weight × penalty, a scalar.

    Callback-style: beside the penalty it may follow the run (a schedule of its weight, a teacher's moving average) through
    `on_fit_start` and `on_optimizer_step_end`; what it carries is in its `state_dict`.

        >>> class SmallLogits(Regularizer):
        ...     differentiates_clean_pass = True
        ...     def penalty(self, step):
        ...         return step.clean.logits.square().mean()
        >>> model, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.arange(8) % 3
        >>> regularizer = SmallLogits(weight=0.1)
        >>> loss = F.cross_entropy(model(x), y) + regularizer(model, x)

    Args:
        weight: factor of the penalty.
        ramp_up: optimizer steps over which the weight rises as exp(-5 (1 - t)²), from 0.7 % of itself (Laine and Aila, arXiv 1610.02242);
            0 for full weight from the start. A loop of your own that uses it calls `on_optimizer_step_end` after each step.
    """

    needs_labels = False
    """Takes the labelled rows rather than all of them."""
    needs_view = False
    """Uses a second augmented view of the inputs where there is one."""
    differentiates_clean_pass = False
    """Sends gradients to the parameters through the clean pass."""
    number = 1
    """Which it is of several of its kind, see `by_unique_name`."""

    def __init__(self, *, weight: float = 1.0, ramp_up: int = 0):
        super().__init__()
        self.weight = not_negative("weight", weight)
        self.ramp_up = int(not_negative("ramp_up", ramp_up))
        self.num_updates = 0
        self._called = False

    def penalty(self, step: Step) -> Tensor:
        """Mean penalty of the step's examples: a scalar in float32 or wider, 0 for an empty batch."""
        raise NotImplementedError

    def term(self, step: Step) -> Tensor:
        """Current weight × penalty, which is not computed where the weight is 0.

        Raises:
            ValueError: the step's clean pass carries no gradient to the parameters, and this regularizer needs one.
        """
        if not self.current_weight:
            return torch.zeros((), device=step.x.device, requires_grad=True).clone()  # backward() may be called on it alone
        if self.differentiates_clean_pass and not step.live:
            raise ValueError(f"{self.name} differentiates the clean pass: make the step with live=True")
        return self.current_weight * self.through_checkpoints(self.penalty, step)

    def through_checkpoints(self, function: Callable[[Step], Any], step: Step) -> Any:
        """What `function` returns of a step, of a network under `torch.utils.checkpoint`, too.

        Raises:
            RuntimeError: If the function needs a gradient that torch cannot give, as under a reentrant checkpoint.
        """
        try:
            return function(step)
        except CheckpointError:  # it computes activations again, with the module's own weights
            step.keep_own_weights()
            return function(step)
        except RuntimeError as error:
            reason = next((reason for words, reason in REASONS.items() if words in str(error)), None)
            if reason is None:
                raise
            raise RuntimeError(f"{self.name} asks for gradients with respect to the inputs. {reason}") from error

    def forward(self, forward: Forward, x: Any, y: Tensor | None = None, *, module: Modules | None = None, **of_step: Any) -> Tensor:
        """The term of one batch: a scalar to add to the loss.

        Args:
            forward: x -> logits (N, …); a module, a method of one, a `functools.partial` of these, or any function with its `module`.
            x: inputs (N, …), of a floating dtype; a tuple or a mapping of the network's arguments, see `Step`.
            y: labels (N,), for regularizers that need them.
            module: the module that another function uses, a list of several, or `()` if there is none.
            **of_step: what else a `Step` takes: `at`, `mask`, `output_mask`, `class_dim`, `group`, `scale`.

        Raises:
            TypeError: `y` are not integers, and are not needed: another input of the model, perhaps.
        """
        if y is not None and not self.needs_labels and (y.dim() != 1 or y.is_floating_point() or y.dtype is torch.bool):
            raise TypeError(
                f"{self.name} takes labels (N,) as its third argument, and has no use for them; this is {y.dtype} of shape "
                f"{tuple(y.shape)}. A mask goes as mask=…, a second input goes into a function, as vat(lambda x: model(x, z), x, "
                "module=model), or into the call, as vat(model, (x, z))"
            )
        step = Step(forward, x, y, module=module, live=self.differentiates_clean_pass, **of_step)
        term = self.term(step)
        if self.current_weight and (step.module is not None or not self._called):
            self._called = True
            self.through_checkpoints(self.first_call, step)
        return term

    def first_call(self, step: Step) -> None:
        """Called after the term of a batch in a loop of one's own: to look, once for a network, for what makes a wrong number."""

    @property
    def current_weight(self) -> float:
        """The weight at this point of the run."""
        if self.num_updates >= self.ramp_up:
            return self.weight
        return self.weight * math.exp(-5 * (1 - self.num_updates / self.ramp_up) ** 2)

    @property
    def name(self) -> str:
        """Its name in logs."""
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()
        return kind if self.number == 1 else f"{kind}_{self.number}"

    def on_fit_start(self, model: nn.Module) -> None:
        """Called once the model stands on its device, before the first step; after a restart, once the state is loaded."""

    def on_optimizer_step_end(self, model: nn.Module) -> None:
        """Called after every optimizer step. An override calls this one."""
        self.num_updates += 1

    def reset(self) -> None:
        """Forget what was carried from step to step, before another run. An override calls this one."""
        self.num_updates = 0

    def get_extra_state(self) -> dict[str, Any]:
        """Whatever is carried from step to step: tensors and plain numbers."""
        return {"num_updates": self.num_updates}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what `get_extra_state` gave."""
        self.num_updates = int(state["num_updates"])


def by_unique_name(regularizers: Iterable[Regularizer]) -> dict[str, Regularizer]:
    """Regularizers by their names in logs; a second one of a kind gets a number.

    Raises:
        TypeError: If one is no `Regularizer`.
    """
    named: dict[str, Regularizer] = {}
    for regularizer in regularizers:
        if not isinstance(regularizer, Regularizer):
            raise TypeError(f"regularizers must be vat.Regularizer objects, got {regularizer!r}")
        regularizer.number = 1
        while regularizer.name in named:
            regularizer.number += 1
        named[regularizer.name] = regularizer
    return named


def live(regularizers: Collection[Regularizer]) -> bool:
    """Whether their `Step` is to be live: several of them use the one clean pass, or one sends gradients through it."""
    at_work = [regularizer for regularizer in regularizers if regularizer.current_weight]
    return len(at_work) > 1 or any(regularizer.differentiates_clean_pass for regularizer in at_work)


def mean(value: Tensor) -> Tensor:
    """Mean over the examples; 0, with a gradient of 0, where there are none.

    Raises:
        ValueError: it is a single number.
    """
    if not value.dim():
        raise ValueError(
            "a divergence gives a value for each example, of shape (N,), got a single number: leave the mean to the regularizer"
        )
    return value.sum() / max(1, len(value))


def not_negative(name: str, value: float) -> float:
    """`value`, if it is a finite number >= 0.

    Raises:
        ValueError: it is negative, NaN or infinite.
        TypeError: it is no number.
    """
    try:
        possible = math.isfinite(value) and value >= 0
    except TypeError:
        raise TypeError(f"{name} must be a finite number >= 0, got {value!r}") from None
    if not possible:
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")
    return value


def share(name: str, value: float) -> float:
    """`value`, if it lies in [0, 1).

    Raises:
        ValueError: it does not.
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be >= 0 and < 1, got {value}")
    return value
