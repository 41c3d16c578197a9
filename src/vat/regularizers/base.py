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
        "torch.utils.checkpoint with use_reentrant=True cannot compute them: pass use_reentrant=False, or use VAT(direction='random')"
    ),
    "not currently support double backward": (
        "A function that torch.compile compiled cannot be differentiated twice, but direction 'exact' and gradient_through_r do so: call "
        "the regularizer outside of torch.compile, or use direction='random_margin'"
    ),
    "donated buffers": (
        "Direction 'exact' differentiates a compiled network twice: import torch._functorch.config and set "
        "torch._functorch.config.donated_buffer = False before compiling, or use direction='random_margin'"
    ),
    "One of the differentiated Tensors does not require grad": (
        "The network differentiates with respect to its own weights in forward, but they are constants here: perturb a later layer with "
        "at=…, outside of that part"
    ),
    "can only change requires_grad flags of leaf": (
        "The network sets requires_grad on what it computed from them: call model.freeze_feature_encoder(), if the model has it, or "
        "perturb a later layer with at=…"
    ),
    "not have been used in the graph": NO_GRADIENT[0].upper() + NO_GRADIENT[1:],
}
"""What to do about torch's errors, by words in their messages."""


class Regularizer(nn.Module):
    """A term added to the loss of a training step: weight × penalty, a scalar.

    A regularizer may also follow the run, for a schedule of its weight or a teacher's moving average. It does so in `on_fit_start` and
    `on_optimizer_step_end`. Its `state_dict` has the state that it keeps between steps.

        >>> class SmallLogits(Regularizer):
        ...     differentiates_clean_pass = True
        ...     def penalty(self, step):
        ...         return step.clean.logits.square().mean()
        >>> model, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.arange(8) % 3
        >>> regularizer = SmallLogits(weight=0.1)
        >>> loss = F.cross_entropy(model(x), y) + regularizer(model, x)

    Args:
        weight: Factor of the penalty, >= 0.
        ramp_up: Optimizer steps over which the weight rises as exp(-5 (1 - t)²), from 0.7 % of its value (Laine and Aila, arXiv
            1610.02242); 0 for full weight from the start. Your own loop must then call `on_optimizer_step_end` after each step.
    """

    needs_labels = False
    """Whether it takes only the labelled rows instead of all rows."""
    needs_view = False
    """Whether it uses a second augmented view of the inputs, if there is one."""
    differentiates_clean_pass = False
    """Whether it sends gradients to the parameters through the clean pass."""
    number = 1
    """Its number among several of its kind; see `by_unique_name`."""

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
        """Current weight × penalty. If the weight is 0, the penalty is not computed.

        Raises:
            ValueError: If this regularizer needs a gradient through the clean pass and the step is not live.
        """
        if not self.current_weight:
            return torch.zeros((), device=step.x.device, requires_grad=True).clone()  # so that its backward() works
        if self.differentiates_clean_pass and not step.live:
            raise ValueError(f"{self.name} differentiates the clean pass, got a step with live=False: pass live=True to Step")
        return self.current_weight * self.through_checkpoints(self.penalty, step)

    def through_checkpoints(self, function: Callable[[Step], Any], step: Step) -> Any:
        """Return `function(step)`, also if the network uses `torch.utils.checkpoint`.

        Raises:
            RuntimeError: If the function needs a gradient that torch cannot compute, as with a reentrant checkpoint.
        """
        try:
            return function(step)
        except CheckpointError:  # the checkpoint computed activations again, with the module's weights instead of constants
            step.keep_own_weights()
            return function(step)
        except RuntimeError as error:
            reason = next((reason for words, reason in REASONS.items() if words in str(error)), None)
            if reason is None:
                raise
            raise RuntimeError(f"{self.name} needs gradients with respect to the inputs. {reason}") from error

    def forward(self, forward: Forward, x: Any, y: Tensor | None = None, *, module: Modules | None = None, **of_step: Any) -> Tensor:
        """Compute the term of one batch, a scalar to add to the loss.

        Args:
            forward: Function x -> logits (N, …): a module, a method of one, a `functools.partial` of these, or any function with `module`.
            x: Inputs (N, …), of a floating dtype; or a tuple or mapping of the network's arguments, see `Step`.
            y: Labels (N,), for regularizers that need them.
            module: Module that another function uses, a list of several, or `()` if there is none.
            **of_step: Further arguments of `Step`: `at`, `mask`, `output_mask`, `class_dim`, `group`, `scale`.

        Raises:
            TypeError: If `y` is not needed and cannot be labels: it may be another input of the model.
        """
        if y is not None and not self.needs_labels and (y.dim() != 1 or y.is_floating_point() or y.dtype is torch.bool):
            raise TypeError(
                f"the third argument of {self.name} must be integer labels (N,), which it does not use, got {y.dtype} of shape "
                f"{tuple(y.shape)}. Pass a mask as mask=…, and a second input in the call, as vat(model, (x, z)), or in a function, as "
                "vat(lambda x: model(x, z), x, module=model)"
            )
        step = Step(forward, x, y, module=module, live=self.differentiates_clean_pass, **of_step)
        term = self.term(step)
        if self.current_weight and (step.module is not None or not self._called):
            self._called = True
            self.through_checkpoints(self.first_call, step)
        return term

    def first_call(self, step: Step) -> None:
        """Check once for each network for causes of a wrong number. Called after the term of a batch in the user's own loop."""

    @property
    def current_weight(self) -> float:
        """The weight at this point of the run."""
        if self.num_updates >= self.ramp_up:
            return self.weight
        return self.weight * math.exp(-5 * (1 - self.num_updates / self.ramp_up) ** 2)

    @property
    def name(self) -> str:
        """The regularizer's name in logs."""
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()
        return kind if self.number == 1 else f"{kind}_{self.number}"

    def on_fit_start(self, model: nn.Module) -> None:
        """Called before the first step, when the model is on its device; after a restart, when the state is loaded."""

    def on_optimizer_step_end(self, model: nn.Module) -> None:
        """Called after every optimizer step. An override must call this method, too."""
        self.num_updates += 1

    def reset(self) -> None:
        """Discard the state kept between steps, before another run. An override must call this method, too."""
        self.num_updates = 0

    def get_extra_state(self) -> dict[str, Any]:
        """State kept between steps: tensors and plain numbers."""
        return {"num_updates": self.num_updates}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Load the state that `get_extra_state` returned."""
        self.num_updates = int(state["num_updates"])


def by_unique_name(regularizers: Iterable[Regularizer]) -> dict[str, Regularizer]:
    """Map names in logs to regularizers. The second of a kind gets a number.

    Raises:
        TypeError: If one is not a `Regularizer`.
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
    """Whether their `Step` must be live: several of them use its clean pass, or one sends gradients through it."""
    at_work = [regularizer for regularizer in regularizers if regularizer.current_weight]
    return len(at_work) > 1 or any(regularizer.differentiates_clean_pass for regularizer in at_work)


def not_negative(name: str, value: float) -> float:
    """Return `value` if it is a finite number >= 0.

    Raises:
        ValueError: If it is negative, NaN or infinite.
        TypeError: If it is not a number.
    """
    try:
        possible = math.isfinite(value) and value >= 0
    except TypeError:
        raise TypeError(f"{name} must be a finite number >= 0, got {value!r}") from None
    if not possible:
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")
    return value


def share(name: str, value: float) -> float:
    """Return `value` if it is in [0, 1).

    Raises:
        ValueError: If it is outside.
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be >= 0 and < 1, got {value}")
    return value
