"""Auto-PGD."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vat.attacks.base import Attack, View, at_least_one, each, look
from vat.attacks.losses import LOSSES
from vat.attacks.threat import Threat
from vat.functional import as_classes, by_name
from vat.step import Forward


class APGD(Attack):
    """Auto-PGD (Croce & Hein, arXiv 2003.01690): momentum, and steps that are halved where the loss no longer rises.

    Args:
        steps: of each start.
        restarts: starts, all from random points.
        loss: that is raised: "cross_entropy" or "dlr", the scaled difference of logits.
        targets: classes that are aimed at one after the other, from the runner-up on; 0 aims at none in particular. Such an attack is
            spared what others have felled.
    """

    def __init__(self, *, steps: int = 100, restarts: int = 1, loss: str = "cross_entropy", targets: int = 0):
        self.steps, self.restarts = at_least_one("steps", steps), at_least_one("restarts", restarts)
        self.loss, self._loss_name = by_name("loss", LOSSES, loss), loss
        if targets < 0:
            raise ValueError(f"targets must be >= 0, got {targets}")
        self.targets, self.spared = targets, targets > 0

    @property
    def name(self) -> str:
        """See `Attack`."""
        return f"apgd_{'ce' if self._loss_name == 'cross_entropy' else self._loss_name}{'_targeted' if self.targets else ''}"

    def __call__(self, network: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        found, standing = x.clone(), torch.arange(len(x), device=x.device)
        for aim in self._aims(network, x, y):
            for _ in range(self.restarts):
                if len(standing):
                    target = None if aim is None else aim[standing]
                    found[standing], stands = self._ascend(network, x[standing], y[standing], target, threat, generator)
                    standing = standing[stands]
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
        """Where each example fell, or the input; and the rows that stand."""
        found, rows = x.clone(), torch.arange(len(x), device=x.device)
        period = checkpoint = max(int(0.22 * self.steps), 1)
        shortest, shrinkage = max(int(0.06 * self.steps), 1), max(int(0.03 * self.steps), 1)
        point, state = threat.random(x, generator), None
        for step in range(self.steps + 1):
            aim = None if target is None else target[rows]
            view = look(network, point, y[rows], self.loss, aim)
            state = _Ascent.begin(point, view, 2 * threat.eps) if state is None else state.moved(point, view)
            found[rows[view.fell]] = point[view.fell]
            rows, state = rows[~view.fell], state.of(~view.fell)
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
    """The state of APGD for each example that stands.

    Attributes:
        point, gradient, loss: At present.
        previous: The point before.
        size: Of a step.
        best, best_gradient, best_loss: Where the loss was highest.
        rises: Steps since the last checkpoint that raised the loss.
        halved: At the last checkpoint.
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
        """After `period` steps: half the step and a return to the best, where less than 75 % of them rose or nothing came of them."""
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
