"""Mean teacher: agreement with the moving average of the weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vat.functional import probabilities
from vat.layers import unwrapped
from vat.regularizers.base import Regularizer, share
from vat.step import Step


class MeanTeacher(Regularizer):
    """Mean squared difference of the class probabilities from those of a teacher, the moving average of the weights.

    Tarvainen and Valpola, arXiv 1703.01780. The teacher is a set of weights, not a second module. It gets different noise, and the second
    view if the data has one. No gradient flows through it. Cost: 1 F and a clean pass. In your own loop, call `on_fit_start(model)` once
    and `on_optimizer_step_end(model)` after each step.

        >>> model, term = nn.Linear(4, 3), MeanTeacher(decay=0.99)
        >>> term.on_fit_start(model)
        >>> term(model, torch.randn(8, 4)).item()  # the teacher starts as the model
        0.0
        >>> term.on_optimizer_step_end(model)

    Args:
        decay: Decay of the moving average. The first steps use min(1 - 1 / (t + 1), decay), to forget the initial weights.
        weight: Factor of the penalty.
        ramp_up: Number of optimizer steps over which the weight rises.
    """

    needs_view = True
    differentiates_clean_pass = True

    def __init__(self, *, decay: float = 0.99, weight: float = 1.0, ramp_up: int = 0):
        super().__init__(weight=weight, ramp_up=ramp_up)
        self.decay = share("decay", decay)
        self.teacher: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Reset the state and remove the teacher."""
        super().reset()
        self.teacher = {}

    @torch.no_grad()
    def on_fit_start(self, model: nn.Module) -> None:
        """Copy the model's weights to the teacher. After a restart, move the teacher to the model's device."""
        self.teacher = {
            name: self.teacher[name].to(p.device) if name in self.teacher else p.detach().clone()
            for name, p in unwrapped(model).named_parameters()
        }

    @torch.no_grad()
    def on_optimizer_step_end(self, model: nn.Module) -> None:
        """Update the teacher."""
        self._refuse_absence()
        decay = min(1 - 1 / (self.num_updates + 1), self.decay)
        names, weights = zip(*unwrapped(model).named_parameters(), strict=True)
        get_ema_multi_avg_fn(decay)([self.teacher[name] for name in names], weights, None)  # all weights in a few kernels
        super().on_optimizer_step_end(model)

    def penalty(self, step: Step) -> Tensor:
        """Mean squared difference between student's and teacher's probabilities."""
        self._refuse_absence()
        with torch.no_grad():
            x = step.x if step.view is None else step.view
            target = probabilities(step.network(x, noise="teacher", parameters=self.teacher))
        difference = probabilities(step.clean.logits) - target
        return step.mean(step.mean_over_positions(difference.square().mean(1), step.clean.logits))

    def _refuse_absence(self) -> None:
        if not self.teacher:
            raise RuntimeError("the teacher has no weights: call on_fit_start(model) before the first step")

    def get_extra_state(self) -> dict[str, Any]:
        """State of the base class and the teacher's weights."""
        return super().get_extra_state() | {"teacher": self.teacher}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the state of `get_extra_state`."""
        super().set_extra_state(state)
        self.teacher = {name: t.clone() for name, t in state["teacher"].items()}
