"""Auto-PGD."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vat.attacks.base import Attack, View, at_least_one, each, look
from vat.attacks.losses import LOSSES
from vat.attacks.threat import Threat
from vat.functional import as_classes, by_name
from vat.network import Forward


class APGD(Attack):
    """Auto-PGD (Croce & Hein, arXiv 2003.01690): it has momentum, and it halves the step if the loss no longer rises.

    Args:
        steps: Number of steps of each start, >= 1.
        restarts: Number of starts, >= 1. Each begins at a random point.
        loss: Loss that the attack raises: "cross_entropy" or "dlr", the scaled difference of logits.
        targets: Number of classes to aim at one after the other, the most probable wrong class first. 0 aims at no particular class. A
            targeted attack gets only the examples that the white-box attacks before it left robust.
    """

    def __init__(self, *, steps: int = 100, restarts: int = 1, loss: str = "cross_entropy", targets: int = 0):
        self.steps, self.restarts = at_least_one("steps", steps), at_least_one("restarts", restarts)
        self.loss, self._loss_name = by_name("loss", LOSSES, loss), loss
        if targets < 0:
            raise ValueError(f"targets must be >= 0, got {targets}")
        self.targets, self.on_the_rest = targets, targets > 0

    @property
    def name(self) -> str:
        """See `Attack`."""
        return f"apgd_{'ce' if self._loss_name == 'cross_entropy' else self._loss_name}{'_targeted' if self.targets else ''}"

    def __call__(self, network: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        found, robust = x.clone(), torch.arange(len(x), device=x.device)
        for aim in self._aims(network, x, y):
            for _ in range(self.restarts):
                if len(robust):
                    target = None if aim is None else aim[robust]
                    found[robust], held = self._ascend(network, x[robust], y[robust], target, threat, generator)
                    robust = robust[held]
        return found

    def _aims(self, network: Forward, x: Tensor, y: Tensor) -> Sequence[Tensor | None]:
        if not self.targets or not len(x):
            return [None]
        with torch.no_grad():
            logits = as_classes(network(x))
        others = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]
        return [*others.unbind(1)][: self.targets]

    def _ascend(
        self, network: Forward, x: Tensor, y: Tensor, target: Tensor | None, threat: Threat, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """A misclassified point for each example, or the input; and the rows that are still robust."""
        found, rows = x.clone(), torch.arange(len(x), device=x.device)
        period = checkpoint = max(int(0.22 * self.steps), 1)
        shortest, shrinkage = max(int(0.06 * self.steps), 1), max(int(0.03 * self.steps), 1)
        point, state = threat.random(x, generator), None
        for step in range(self.steps + 1):
            aim = None if target is None else target[rows]
            view = look(network, point, y[rows], self.loss, aim)
            state = _Ascent.begin(point, view, 2 * threat.eps) if state is None else state.moved(point, view)
            found[rows[view.misclassified]] = point[view.misclassified]
            rows, state = rows[~view.misclassified], state.of(~view.misclassified)
            if step == self.steps or not len(rows):
                break
            if step == checkpoint:
                state = state.checked(period)
                period = max(period - shrinkage, shortest)
                checkpoint += period
            ahead = threat.step(x[rows], state.point, state.gradient, each(state.size, x), generator)
            share = 0.75 if step else 1.0
            momentum = share * (ahead - state.point) + (1 - share) * (state.point - state.previous)
            point = threat.nearest(x[rows], state.point + momentum)
        return found, rows


class _Ascent(NamedTuple):
    """The state of APGD for each example that is still robust.

    Attributes:
        point, gradient, loss: Current values.
        previous: Point before the current one.
        size: Length of a step.
        best, best_gradient, best_loss: Values at the point of the highest loss so far.
        rises: Number of steps since the last checkpoint that raised the loss.
        halved: Whether the last checkpoint halved the step.
        checked_loss: Highest loss at the last checkpoint.
    """

    point: Tensor
    gradient: Tensor
    loss: Tensor
    previous: Tensor
    size: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    rises: Tensor
    halved: Tensor
    checked_loss: Tensor

    @classmethod
    def begin(cls, point: Tensor, view: View, size: float) -> "_Ascent":
        here = (point, view.gradient, view.loss)
        none = torch.zeros(len(point), device=point.device)
        sizes = torch.full_like(none, size, dtype=point.dtype)
        return cls(*here, point, sizes, *here, none, torch.ones_like(none, dtype=torch.bool), view.loss)

    def of(self, rows: Tensor) -> "_Ascent":
        return _Ascent(*(value[rows] for value in self))

    def moved(self, point: Tensor, view: View) -> "_Ascent":
        better = view.loss > self.best_loss
        return self._replace(
            point=point,
            gradient=view.gradient,
            loss=view.loss,
            previous=self.point,
            best=torch.where(each(better, point), point, self.best),
            best_gradient=torch.where(each(better, point), view.gradient, self.best_gradient),
            best_loss=torch.where(better, view.loss, self.best_loss),
            rises=self.rises + (view.loss > self.loss),
        )

    def checked(self, period: int) -> "_Ascent":
        """The state after a checkpoint: half the step and a return to the best point, for an example that makes too little progress.

        That is: at most 75 % of the last `period` steps raised the loss, or the best loss did not rise since a checkpoint that left
        the step as it was.
        """
        stuck = ~self.halved & (self.best_loss <= self.checked_loss)
        halve = (self.rises <= 0.75 * period) | stuck
        wide = each(halve, self.point)
        return self._replace(
            point=torch.where(wide, self.best, self.point),
            gradient=torch.where(wide, self.best_gradient, self.gradient),
            loss=torch.where(halve, self.best_loss, self.loss),
            size=torch.where(halve, self.size / 2, self.size),
            rises=torch.zeros_like(self.rises),
            halved=halve,
            checked_loss=self.best_loss,
        )
