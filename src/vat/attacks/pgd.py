"""Gradient attacks with one step (FGM) and with many steps (PGD)."""

from collections.abc import Callable

import torch
from torch import Tensor

from vat.attacks.base import Attack, at_least_one, each, look, predictions
from vat.attacks.losses import LOSSES, cross_entropy
from vat.attacks.threat import Threat
from vat.functional import by_name
from vat.network import Forward


class FGM(Attack):
    """One step of length ε along the gradient of the cross entropy (Goodfellow et al., arXiv 1412.6572)."""

    def __call__(self, network: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        view = look(network, x, y, cross_entropy)
        point = threat.step(x, x, view.gradient, threat.eps, generator)
        misclassified = predictions(network, point) != y
        return torch.where(each(misclassified, x), point, x)


class PGD(Attack):
    """Projected steps along the gradient (Madry et al., arXiv 1706.06083). The first start is the input, the others are random points.

    Args:
        steps: Number of steps of each start, >= 1.
        restarts: Number of starts, >= 1.
        step_size: First step as a share of ε, > 0. None: 2.5 / steps, which is enough to cross the ball.
        schedule: Schedule of the step size: "constant", or "cosine" or "linear", which decrease to 0.
        loss: Loss that the attack raises: "cross_entropy" or "dlr".
    """

    def __init__(
        self,
        *,
        steps: int = 40,
        restarts: int = 1,
        step_size: float | None = None,
        schedule: str = "cosine",
        loss: str = "cross_entropy",
    ):
        self.steps, self.restarts = at_least_one("steps", steps), at_least_one("restarts", restarts)
        if step_size is not None and not step_size > 0:
            raise ValueError(f"step_size is a share of eps and must be > 0, got {step_size}")
        self.step_size = step_size
        self.schedule = by_name("schedule", SCHEDULES, schedule)
        self.loss = by_name("loss", LOSSES, loss)

    def __call__(self, network: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        found, robust = x.clone(), torch.arange(len(x), device=x.device)
        first = (2.5 / self.steps if self.step_size is None else self.step_size) * threat.eps
        for restart in range(self.restarts):
            rows = robust
            point = threat.random(x[rows], generator) if restart else x[rows]
            for step in range(self.steps + 1):
                if not len(rows):
                    break
                view = look(network, point, y[rows], self.loss)
                found[rows[view.misclassified]] = point[view.misclassified]
                rows, point, gradient = (value[~view.misclassified] for value in (rows, point, view.gradient))
                if step < self.steps:
                    point = threat.step(x[rows], point, gradient, first * self.schedule(step / self.steps), generator)
            robust = rows
        return found


def _constant(progress: float) -> float:
    return 1.0


def _linear(progress: float) -> float:
    return 1 - progress


def cosine(progress: float) -> float:
    """Decrease from 1 to 0 along half a cosine wave."""
    return float(torch.cos(torch.tensor(progress * torch.pi / 2, dtype=torch.float64)) ** 2)


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": _constant, "linear": _linear, "cosine": cosine}
