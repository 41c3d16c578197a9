"""Attacks: each searches the ball of radius ε around an input for a point that the network takes for another class.

An attack is a call `attack(network, x, y, threat, generator)` which returns, for each example, the point at which it fell, or the input
itself where it stands. Examples that have fallen are left alone, and everything random comes from the generator. Losses are computed in
float64: in float32 the softmax of a certain prediction has no gradient, and a model would pass for robust because of it.
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vat.functional import as_classes, by_name
from vat.network import Forward, random_state
from vat.norms import LInf, Norm

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Threat:
    """The points an attack may choose from: at most `eps` from the input, and within the range of inputs.

    Args:
        norm: of the perturbation.
        eps: its largest length, in the units of the input.
        bounds: least and greatest value of an input; None where any value is one.
    """

    norm: Norm
    eps: float
    bounds: tuple[float, float] | None = None

    def nearest(self, x: Tensor, point: Tensor) -> Tensor:
        """`point` moved into the ball around `x`, then into the range: that takes no point out of the ball, for `x` lies in the range."""
        moved = x + self.norm.project(point - x, self.eps)
        return moved if self.bounds is None else moved.clamp(*self.bounds)

    def random(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Each input moved by ε in a random direction."""
        return self.nearest(x, x + self.eps * self.norm.sample(_normal(x, generator)))

    def step(self, x: Tensor, point: Tensor, gradient: Tensor, size: Tensor | float, generator: torch.Generator) -> Tensor:
        """`point` moved by `size` to where `gradient` points, at random where it is zero, and back into the ball around `x`."""
        return self.nearest(x, point + size * self.norm.dual(gradient, self.norm.sample(_normal(x, generator))))


def predictions(network: Forward, x: Tensor) -> Tensor:
    """The class of each input (N,), without a gradient."""
    with torch.no_grad():
        return as_classes(network(x)).argmax(1)


# --------------------------------------------------------------------------------------------------------------------- losses


def cross_entropy(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Of the class `y`; towards `target` where there is one, its negative. Logits (N, C), classes (N,), result (N,)."""
    return F.cross_entropy(logits, y, reduction="none") if target is None else -F.cross_entropy(logits, target, reduction="none")


def logit_difference(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """How far the best other class, or `target`, is ahead of `y`, in logits: positive where the example has fallen."""
    of_y = logits.gather(1, y[:, None])[:, 0]
    if target is not None:
        return logits.gather(1, target[:, None])[:, 0] - of_y
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - of_y


def scaled_difference(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """The difference of logits ratio (DLR) of Croce & Hein, arXiv 2003.01690: blind to a scale of the logits.

    With too few classes for the scale, two or for a target three, it is the difference itself: only its gradient's direction counts.
    """
    difference = logit_difference(logits, y, target)
    if logits.shape[1] < (3 if target is None else 4):
        return difference
    ordered = logits.sort(1, descending=True).values
    least = ordered[:, 2] if target is None else (ordered[:, 2] + ordered[:, 3]) / 2
    return difference / (ordered[:, 0] - least + 1e-12)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "dlr": scaled_difference}


class _View(NamedTuple):
    """What one pass tells of each example: its loss, the gradient of it, whether the example has fallen."""

    loss: Tensor
    gradient: Tensor
    fell: Tensor


def _look(network: Forward, point: Tensor, y: Tensor, loss: Loss, target: Tensor | None = None) -> _View:
    with torch.enable_grad():
        leaf = point.detach().requires_grad_()
        logits = as_classes(network(leaf)).double()
        value = loss(logits, y, target)
        gradient = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] if value.requires_grad else None
    return _View(value.detach(), torch.zeros_like(point) if gradient is None else gradient, logits.argmax(1) != y)


# -------------------------------------------------------------------------------------------------------------------- attacks


class Attack:
    """One way to search.

    Attributes:
        white_box: It uses gradients of the network that is attacked; None: in part.
        spared: It is too dear to be given what the white-box attacks before it in a list have felled.
    """

    white_box: bool | None = True
    spared: bool = False

    @property
    def name(self) -> str:
        """In reports and figures."""
        return type(self).__name__.lower()

    def __call__(self, network: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Points at which the examples fell, and the inputs themselves where they stand: (N, …).

        Args:
            network: x -> logits, in evaluation mode.
            x: inputs (N, …) within the threat's bounds.
            y: their classes (N,).
            threat: what may be done to them.
            generator: source of all that is random, on the device of x.
        """
        raise NotImplementedError


class RandomNoise(Attack):
    """Perturbations of length ε in random directions: what robustness must at least mean.

    Args:
        draws: of which each example must stand all.
    """

    white_box = False

    def __init__(self, *, draws: int = 1):
        self.draws = _at_least_one("draws", draws)

    @property
    def name(self) -> str:
        """See `Attack`."""
        return "random"

    def __call__(self, network: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        found, rows = x.clone(), torch.arange(len(x), device=x.device)
        for _ in range(self.draws):
            point = threat.random(x[rows], generator)
            fell = predictions(network, point) != y[rows]
            found[rows[fell]] = point[fell]
            rows = rows[~fell]
            if not len(rows):
                break
        return found


class FGM(Attack):
    """One step of length ε along the gradient of the cross entropy (Goodfellow et al., arXiv 1412.6572)."""

    def __call__(self, network: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        view = _look(network, x, y, cross_entropy)
        point = threat.step(x, x, view.gradient, threat.eps, generator)
        fell = predictions(network, point) != y
        return torch.where(_each(fell, x), point, x)


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
        self.steps, self.restarts = _at_least_one("steps", steps), _at_least_one("restarts", restarts)
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
                view = _look(network, point, y[rows], self.loss)
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


def _cosine(progress: float) -> float:
    return float(torch.cos(torch.tensor(progress * torch.pi / 2, dtype=torch.float64)) ** 2)


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": _constant, "linear": _linear, "cosine": _cosine}


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
        self.steps, self.restarts = _at_least_one("steps", steps), _at_least_one("restarts", restarts)
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
            view = _look(network, point, y[rows], self.loss, aim)
            state = _Ascent.begin(point, view, 2 * threat.eps) if state is None else state.moved(point, view)
            found[rows[view.fell]] = point[view.fell]
            rows, state = rows[~view.fell], state.of(~view.fell)
            if step == self.steps or not len(rows):
                break
            if step == checkpoint:
                state = state.checked(period)
                period = max(period - shrinkage, shortest)
                checkpoint += period
            ahead = threat.step(x[rows], state.point, state.gradient, _each(state.size, x), generator)
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
    def begin(cls, point: Tensor, view: _View, size: float) -> "_Ascent":
        here = (point, view.gradient, view.loss)
        none = torch.zeros(len(point), device=point.device)
        sizes = torch.full_like(none, size, dtype=point.dtype)
        return cls(*here, point, sizes, *here, none, torch.ones_like(none, dtype=torch.bool), view.loss)

    def of(self, rows: Tensor) -> "_Ascent":
        return _Ascent(*(value[rows] for value in self))

    def moved(self, point: Tensor, view: _View) -> "_Ascent":
        better = view.loss > self.best_loss
        return self._replace(
            point=point,
            gradient=view.gradient,
            loss=view.loss,
            previous=self.point,
            best=torch.where(_each(better, point), point, self.best),
            best_gradient=torch.where(_each(better, point), view.gradient, self.best_gradient),
            best_loss=torch.where(better, view.loss, self.best_loss),
            rises=self.rises + (view.loss > self.loss),
        )

    def checked(self, period: int) -> "_Ascent":
        """After `period` steps: half the step and a return to the best, where less than 75 % of them rose or nothing came of them."""
        stuck = ~self.halved & (self.best_loss <= self.checked_loss)
        halve = (self.rises <= 0.75 * period) | stuck
        wide = _each(halve, self.point)
        return self._replace(
            point=torch.where(wide, self.best, self.point),
            gradient=torch.where(wide, self.best_gradient, self.gradient),
            loss=torch.where(halve, self.best_loss, self.loss),
            size=torch.where(halve, self.size / 2, self.size),
            rises=torch.zeros_like(self.rises),
            halved=halve,
            checked_loss=self.best_loss,
        )


class Square(Attack):
    """Random search that sees logits alone (Andriushchenko et al., arXiv 1912.00049): it sets windows of the image anew.

    Inputs that are no images (N, C, H, W) count as one row of pixels. In L2 a window takes over the length of another, as in the paper;
    the pattern written into it is even, where theirs is a bump.

    Args:
        queries: passes, at most.
        window: share of the pixels in a window at first; it falls as in the paper.
    """

    white_box = False

    def __init__(self, *, queries: int = 1000, window: float = 0.8):
        self.queries = _at_least_one("queries", queries)
        if not 0 < window <= 1:
            raise ValueError(f"window must be > 0 and <= 1, got {window}")
        self.window = window

    def __call__(self, network: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        found, rows = x.clone(), torch.arange(len(x), device=x.device)
        images = x if x.dim() == 4 else x.reshape(len(x), 1, 1, -1)
        stripes = self._signs((len(x), images.shape[1], 1, images.shape[3]), x, generator).expand_as(images)
        best = threat.nearest(x, x + threat.eps * threat.norm.dual(stripes.reshape(x.shape), x))
        lead = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
        candidate = best
        for query in range(self.queries):
            with torch.no_grad():
                ahead = logit_difference(as_classes(network(candidate)).double(), y[rows])
            better = ahead > lead
            best, lead = torch.where(_each(better, best), candidate, best), torch.where(better, ahead, lead)
            fell = lead > 0
            found[rows[fell]] = best[fell]
            rows, best, lead = rows[~fell], best[~fell], lead[~fell]
            if not len(rows):
                break
            change = self._change_linf if isinstance(threat.norm, LInf) else self._change_l2
            size = self._size(query, *images.shape[2:])
            moved = change((best - x[rows]).reshape(len(rows), *images.shape[1:]), size, threat.eps, generator)
            candidate = threat.nearest(x[rows], x[rows] + moved.reshape(best.shape))
        return found

    def _size(self, query: int, height: int, width: int) -> tuple[int, int]:
        halvings = sum(query / self.queries * 10_000 > bound for bound in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
        area = self.window / 2**halvings * height * width
        rows = min(height, max(1, round(area**0.5)))
        return rows, min(width, max(1, round(area / rows)))

    def _change_linf(self, delta: Tensor, size: tuple[int, int], eps: float, generator: torch.Generator) -> Tensor:
        window = self._window(delta, size, generator)
        delta = delta.clone()
        delta[window] = eps * self._signs((len(delta), delta.shape[1], 1, 1), delta, generator).expand_as(delta[window])
        return delta

    def _change_l2(self, delta: Tensor, size: tuple[int, int], eps: float, generator: torch.Generator) -> Tensor:
        to, of = self._window(delta, size, generator), self._window(delta, size, generator)
        emptied = delta.clone()
        emptied[to] = emptied[of] = 0
        free = (eps**2 - emptied.square().sum((1, 2, 3), keepdim=True)).clamp(min=0) / delta.shape[1]  # for each channel
        old = delta[to] / delta[to].square().sum((2, 3), keepdim=True).sqrt().clamp(min=1e-12)
        pattern = old + self._signs((len(delta), delta.shape[1], 1, 1), delta, generator) / (size[0] * size[1]) ** 0.5
        emptied[to] = pattern / pattern.square().sum((2, 3), keepdim=True).sqrt().clamp(min=1e-12) * free.sqrt()
        return emptied

    def _window(self, delta: Tensor, size: tuple[int, int], generator: torch.Generator) -> tuple[slice, ...]:
        corner = [
            int(torch.randint(d - s + 1, (), generator=generator, device=delta.device)) for d, s in zip(delta.shape[2:], size, strict=True)
        ]
        return slice(None), slice(None), *(slice(c, c + s) for c, s in zip(corner, size, strict=True))

    def _signs(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randint(2, shape, generator=generator, device=like.device).to(like.dtype) * 2 - 1


class Transfer(Attack):
    """Points found with the gradients of another network, which never sees the one that is attacked.

    Args:
        source: trained independently for the same classes, in evaluation mode.
        steps: of PGD on the difference of its logits.
    """

    white_box = False

    def __init__(self, source: nn.Module, *, steps: int = 40):
        self.source, self.steps = source, _at_least_one("steps", steps)

    def __call__(self, network: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        point = x
        for step in range(self.steps):
            gradient = _look(self.source, point, y, logit_difference).gradient
            point = threat.step(x, point, gradient, 2.5 / self.steps * threat.eps * _cosine(step / self.steps), generator)
        fell = predictions(network, point) != y
        return torch.where(_each(fell, x), point, x)


class AutoAttack(Attack):
    """The standard ensemble of `pyautoattack`, an independent implementation: APGD-CE, targeted APGD-DLR and FAB, Square.

    It needs inputs in [0, 1], so it is given the network behind the map from there. Unbounded inputs are mapped so that the range does
    not bind. Fewer classes than it aims at by default are all aimed at. What cannot be is left out: the targeted APGD with three classes,
    whose loss takes four, and FAB's targets too with two; in L2 Square on features, and on images of fewer than 5 rows.

    Raises:
        ValueError: `pyautoattack` is not installed.
    """

    white_box = None  # Square uses no gradient

    def __init__(self) -> None:
        if importlib.util.find_spec("pyautoattack") is None:
            raise ValueError("attack=autoattack takes pyautoattack, not installed here: pip install pyautoattack==0.2.0")

    def __call__(self, network: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        import pyautoattack  # pyright: ignore[reportMissingImports]  # an optional extra

        if threat.eps == 0 or not len(x):
            return x.clone()
        logging.getLogger("auto-attack").setLevel(logging.ERROR)
        low, high = threat.bounds or (float(x.min()) - threat.eps, float(x.max()) + threat.eps)
        scale = high - low
        images = x if x.dim() == 4 else x.reshape(len(x), 1, 1, -1)

        def on_unit_range(u: Tensor) -> Tensor:
            return as_classes(network(low + scale * u.reshape(len(u), *x.shape[1:])))

        with torch.no_grad():
            others = on_unit_range((images[:1] - low) / scale).shape[1] - 1
        seed = int(torch.randint(2**31, (), generator=generator, device=x.device))
        norm = "Linf" if isinstance(threat.norm, LInf) else "L2"
        attack = pyautoattack.AutoAttack(
            on_unit_range,  # pyright: ignore[reportArgumentType]  # it calls it, and no more
            norm=norm,
            eps=threat.eps / scale,
            seed=seed,
            device=x.device,
        )
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, others)
        few = {1: ["apgd-ce", "fab", "square"], 2: ["apgd-ce", "fab-t", "square"]}
        parts = few.get(others, ["apgd-ce", "apgd-t", "fab-t", "square"])
        if norm == "L2" and images.shape[2] < 5:  # its squares are a fifth as high as an image
            parts.remove("square")
        attack.attacks_to_run = parts
        with random_state(seed, x.device):
            point, _ = attack.run_standard_evaluation(((images - low) / scale).clamp(0, 1), y, batch_size=len(x))
        point = threat.nearest(x, low + scale * point.reshape(x.shape).to(x.dtype))
        return torch.where(_each(predictions(network, point) != y, x), point, x)


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} must be >= 1, got {value}")
    return value


def _each(value: Tensor, x: Tensor) -> Tensor:
    """(N,) to (N, 1, …, 1), to go with x (N, …)."""
    return value.view(-1, *[1] * (x.dim() - 1))


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
