"""One step along the gradient, and many."""

from collections.abc import Callable

import torch
from torch import Tensor

from vat.attacks.base import Attack, at_least_one, each, look, predictions
from vat.attacks.losses import LOSSES, cross_entropy
from vat.attacks.threat import Threat
from vat.functional import by_name
from vat.step import Forward


class FGM(Attack):
    """One step of length ε along the gradient of the cross entropy (Goodfellow et al., arXiv 1412.6572)."""

    def __call__(self, network: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        view = look(network, x, y, cross_entropy)
        point = threat.step(x, x, view.gradient, threat.eps, generator)
        fell = predictions(network, point) != y
        return torch.where(each(fell, x), point, x)


class PGD(Attack):
    """Projected steps along the gradient (Madry et al., arXiv 1706.06083), the first time from the input, then from random points.

    Args:
        steps: of each start.
        restarts: starts.
        step_size: first step, as a share of ε; 2.5 / steps if None, with which the ball can be crossed.
        schedule: of the step size: "constant", or "cosine" or "linear", which fall to 0.
        loss: that is raised: "cross_entropy" or "dlr".
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
            raise ValueError(f"step_size must be > 0, a share of eps; got {step_size}")
        self.step_size = step_size
        self.schedule = by_name("schedule", SCHEDULES, schedule)
        self.loss = by_name("loss", LOSSES, loss)

    def __call__(self, network: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        found, standing = x.clone(), torch.arange(len(x), device=x.device)
        first = (2.5 / self.steps if self.step_size is None else self.step_size) * threat.eps
        for restart in range(self.restarts):
            rows = standing
            point = threat.random(x[rows], generator) if restart else x[rows]
            for step in range(self.steps + 1):
                if not len(rows):
                    break
                view = look(network, point, y[rows], self.loss)
                found[rows[view.fell]] = point[view.fell]
                rows, point, gradient = (value[~view.fell] for value in (rows, point, view.gradient))
                if step < self.steps:
                    point = threat.step(x[rows], point, gradient, first * self.schedule(step / self.steps), generator)
            standing = rows
        return found


def _constant(progress: float) -> float:
    return 1.0


def _linear(progress: float) -> float:
    return 1 - progress


def cosine(progress: float) -> float:
    """Falls from 1 to 0 as half a wave."""
    return float(torch.cos(torch.tensor(progress * torch.pi / 2, dtype=torch.float64)) ** 2)


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": _constant, "linear": _linear, "cosine": cosine}
