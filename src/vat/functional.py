"""Divergences between predictions.

A model's output is called *logits*, whatever distribution it gives. Its first dimension counts the examples. All arithmetic is in float32
or wider, even under autocast or with half-precision inputs, because half precision loses a KL of 1e-4.
"""

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

NO_LABEL = -100
"""Label of what does not count in torch's cross entropy."""


class Divergence:
    """D(clean, perturbed), a value for each example, which is 0 if the two predictions agree.

    A subclass defines `__call__`. Gradient and Hessian-vector product then use autograd on the logits; a closed form is cheaper.
    """

    averages_positions = True
    """Whether the value is a mean over the positions of an output (N, C, …). Otherwise it is a sum."""

    def __call__(self, clean: Tensor, perturbed: Tensor) -> Tensor:
        """Divergence of each example's `perturbed` logits (N, …) from its `clean` logits (N, …), shape (N,)."""
        raise NotImplementedError

    def gradient(self, clean: Tensor, perturbed: Tensor) -> Tensor:
        """∇D in its second argument for each example, shape of `perturbed` (N, …). It has a graph if `perturbed` has one."""
        with torch.enable_grad():
            z = wide(perturbed) if perturbed.requires_grad else wide(perturbed).detach().requires_grad_()
            (g,) = torch.autograd.grad(self(clean, z).sum(), z, create_graph=perturbed.requires_grad)
        return g

    def hvp(self, logits: Tensor, v: Tensor) -> Tensor:
        """F v: the Hessian of D in its second argument, at perturbed = clean = `logits`, times `v`. Both have shape (N, …)."""
        with torch.enable_grad():
            clean, zero = wide(logits), torch.zeros_like(wide(logits), requires_grad=True)
            (gradient,) = torch.autograd.grad(self(clean, clean + zero).sum(), zero, create_graph=True)
            (product,) = torch.autograd.grad(gradient, zero, wide(v), create_graph=logits.requires_grad)
        return product

    @property
    def decides(self) -> bool:
        """Whether the output is a decision, so that there is a `margin`."""
        return type(self).margin is not Divergence.margin

    def margin(self, logits: Tensor, choice: Tensor | None = None) -> Tensor:
        """Distance of each example's decision from another decision, in logits, shape (N,), >= 0.

        Args:
            logits: Outputs (N, …).
            choice: Number in [0, 1) that selects the other decision, shape (N,). All have equal shares of [0, 1). None selects the nearest.
        """
        raise NotImplementedError(f"{type(self).__name__} outputs are no decisions, so they have no margin")

    def margin_of(self, logits: Tensor, mask: Tensor, choice: Tensor | None = None) -> Tensor:
        """`margin` over what counts, with 0 at other positions. `mask` is boolean, (N, 1, …) or shaped like the logits."""
        return self.margin(torch.where(mask, logits, 0), choice)

    def decision(self, logits: Tensor) -> Tensor | None:
        """Decision of each example (N, …), to count how often it changes. None if the output is not a decision."""
        return None


class Categorical(Divergence):
    """KL[p ‖ q] of softmax outputs.

    Logits (N, C), or (N, C, …) for a decision at each position, whose values are averaged. A single logit, (N,) or (N, 1), is
    the log-odds of the second of two classes: a softmax of one would be constant.

        >>> Categorical()(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        tensor([0.1201])
    """

    def __call__(self, clean: Tensor, perturbed: Tensor) -> Tensor:
        log_p, log_q = as_classes(clean).log_softmax(1), as_classes(perturbed).log_softmax(1)
        p = log_p.exp()
        terms = p * torch.where(p > 0, log_p - log_q, 0)  # a class with a logit of -inf adds 0
        return _not_negative(_mean_over_positions(terms.sum(1)))

    def gradient(self, clean: Tensor, perturbed: Tensor) -> Tensor:
        before, after = as_classes(clean), as_classes(perturbed)
        if before.shape != clean.shape:
            return _bernoulli_gradient(clean, perturbed)
        p, q = before.softmax(1), after.softmax(1)
        # In q - p, rounding would remove the small changes of a confident prediction. Relative to the top class, whose change is then 0,
        # they are sums of small numbers.
        change = (after - before).nan_to_num(nan=0.0)  # a class with a logit of -inf in both
        change = change - change.gather(1, before.argmax(1, keepdim=True))
        growth = change.clamp(max=60).expm1()  # e^60 is far below float32's limit; for larger changes q - p is as exact
        total = (p * growth).sum(1, keepdim=True)
        close = (change <= 60).all(1, keepdim=True)
        return torch.where(close, p * (growth - total) / (1 + total), q - p) / _num_positions(clean)

    def hvp(self, logits: Tensor, v: Tensor) -> Tensor:
        classes, w = as_classes(logits), wide(v)
        if classes.shape != logits.shape:
            return _bernoulli_hvp(logits, v)
        p = classes.softmax(1)
        # F ignores a shift of v. Relative to the top class, small products are sums of small numbers. Without this, rounding in float32
        # removes the curvature of a prediction with a margin of 15 logits.
        w = w - w.gather(1, classes.argmax(1, keepdim=True))
        return p * (w - (p * w).sum(1, keepdim=True)) / _num_positions(logits)

    def margin(self, logits: Tensor, choice: Tensor | None = None) -> Tensor:
        classes = as_classes(logits)
        if choice is None:
            top, other = classes.topk(2, dim=1).values.unbind(1)
        else:
            first = classes.argmax(1, keepdim=True)
            turn = 1 + _pick(choice, classes.shape[1] - 1).view(-1, *[1] * (first.dim() - 1))
            top, other = classes.gather(1, torch.cat([first, (first + turn) % classes.shape[1]], 1)).unbind(1)
        return _mean_over_positions(top - other)

    def decision(self, logits: Tensor) -> Tensor:
        return as_classes(logits).argmax(1)


class Bernoulli(Divergence):
    """KL of independent yes-or-no outputs, summed over dimension 1. Multi-label logits have shape (N, K) or (N, K, …).

    Example:
        >>> Bernoulli()(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
        tensor([0.2402])
    """

    def __call__(self, clean: Tensor, perturbed: Tensor) -> Tensor:
        clean, perturbed = wide(clean), wide(perturbed)
        p = clean.sigmoid()
        yes = p * torch.where(p > 0, F.logsigmoid(clean) - F.logsigmoid(perturbed), 0)  # 0 for a logit of -inf
        q = (-clean).sigmoid()  # 1 - p would be 0 for logits above 17
        no = q * torch.where(q > 0, F.logsigmoid(-clean) - F.logsigmoid(-perturbed), 0)
        return _not_negative(_mean_over_positions(_sum_over_outputs(yes + no)))

    def gradient(self, clean: Tensor, perturbed: Tensor) -> Tensor:
        return _bernoulli_gradient(clean, perturbed)

    def hvp(self, logits: Tensor, v: Tensor) -> Tensor:
        return _bernoulli_hvp(logits, v)

    def margin(self, logits: Tensor, choice: Tensor | None = None) -> Tensor:
        return self.margin_of(logits, torch.ones_like(logits, dtype=torch.bool), choice)

    def margin_of(self, logits: Tensor, mask: Tensor, choice: Tensor | None = None) -> Tensor:
        """Distance of the nearest, or of a random, output that counts from a change of its decision."""
        distance = wide(logits).abs()
        if distance.dim() == 1:
            return torch.where(mask, distance, 0)
        mask = mask.expand_as(distance)
        counted = mask.sum(1, keepdim=True)
        if choice is None:
            nearest = torch.where(mask, distance, torch.inf).amin(1)
            return _mean_over_positions(torch.where(counted[:, 0] > 0, nearest, 0))
        chosen = _pick(choice.view(-1, *[1] * (distance.dim() - 1)), counted)
        return _mean_over_positions(torch.where(mask & (mask.cumsum(1) == chosen + 1), distance, 0).sum(1))

    def decision(self, logits: Tensor) -> Tensor:
        return logits > 0


class Gaussian(Divergence):
    """KL of normal distributions around the outputs (N, …) with one known standard deviation: ‖a − b‖² / 2σ².

        >>> Gaussian(sigma=0.5)(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
        tensor([2.])

    Args:
        sigma: Standard deviation, in the units of the output.

    Raises:
        ValueError: If `sigma` is not a finite number > 0.
    """

    averages_positions = False

    def __init__(self, sigma: float = 1.0):
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma must be a finite number > 0, got {sigma}")
        self.sigma = sigma

    def __call__(self, clean: Tensor, perturbed: Tensor) -> Tensor:
        return (flat((wide(clean) - wide(perturbed)) / self.sigma).square() / 2).sum(1)


class GaussianWithVariance(Divergence):
    """KL of normal distributions whose variance the network predicts, too (heteroscedastic regression).

    Outputs (N, 2K, …): along dimension 1 first K means, then the K logarithms of the variances. `torch.nn.GaussianNLLLoss` on
    `mean, log_variance.exp()` is the loss that goes with them. With KL[p ‖ q], s the log-variances and m the means:
    ½ (exp(s_p − s_q) − 1 + s_q − s_p + (m_p − m_q)² exp(−s_q)), summed over the K outputs and the positions.

        >>> mean_and_log_variance, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
        >>> GaussianWithVariance()(mean_and_log_variance, other)
        tensor([0.5000])
    """

    averages_positions = False

    def __call__(self, clean: Tensor, perturbed: Tensor) -> Tensor:
        means, growth, precision = _normals(clean, perturbed)
        return _not_negative(flat((-growth).expm1() + growth + means.square() * precision).sum(1) / 2)

    def gradient(self, clean: Tensor, perturbed: Tensor) -> Tensor:
        means, growth, precision = _normals(clean, perturbed)
        return torch.cat([means * precision, -((-growth).expm1() + means.square() * precision) / 2], 1)

    def hvp(self, logits: Tensor, v: Tensor) -> Tensor:
        precision, (of_mean, of_log_variance) = _normals(logits, logits)[2], wide(v).chunk(2, 1)
        return torch.cat([of_mean * precision, of_log_variance / 2], 1)


DIVERGENCES: dict[str, Divergence] = {"categorical": Categorical(), "bernoulli": Bernoulli(), "gaussian": Gaussian()}


def wide(x: Tensor) -> Tensor:
    """Convert `x` to float32, or keep its dtype if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def flat(x: Tensor) -> Tensor:
    """Flatten the entries of each example of `x`, (N, …) or (N,), to shape (N, D)."""
    return x.flatten(1) if x.dim() > 1 else x[:, None]


def as_classes(logits: Tensor) -> Tensor:
    """Logits of at least two classes along dimension 1. A single logit z becomes (0, z), whose softmax is (1 - σ(z), σ(z))."""
    logits = wide(logits)
    if logits.dim() == 1:
        logits = logits[:, None]
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    return logits


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross entropy of class indices `y` (N, …) under `logits` (N, C, …) or a single logit (N,), (N, 1).

    As in torch, positions with index -100 do not count. The value is 0 if no position counts.

    Raises:
        TypeError: If `y` is of a floating type.
    """
    if y.is_floating_point():
        raise TypeError(f"labels must be class indices, got {y.dtype} of shape {tuple(y.shape)}")
    return F.cross_entropy(as_classes(logits), y, reduction="sum") / (y != NO_LABEL).sum().clamp(min=1)


def probabilities(logits: Tensor) -> Tensor:
    """Class probabilities (N, C, …) in float32 or wider. A single logit gives two classes."""
    return as_classes(logits).softmax(1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each example's softmax in nats, shape (N,). Logits are those of `Categorical`."""
    return _mean_over_positions(entropy_of_positions(logits))


def entropy_of_positions(logits: Tensor) -> Tensor:
    """Entropy of the softmax at each position in nats, (N, …) without the classes. Logits are those of `Categorical`."""
    log_p = as_classes(logits).log_softmax(1)
    p = log_p.exp()
    return -(p * log_p.where(p > 0, 0)).sum(1)  # 0, not NaN, for a class with a logit of -inf


def _bernoulli_gradient(clean: Tensor, perturbed: Tensor) -> Tensor:
    a, b = wide(clean), wide(perturbed)
    # σ(b) - σ(a) as a product, without cancellation
    distance = (b - a).abs().nan_to_num(nan=0.0, posinf=torch.inf)  # NaN: the same infinite logit in both
    difference = -(-distance).expm1() * torch.maximum(a, b).sigmoid() * (-torch.minimum(a, b)).sigmoid()
    return torch.where(b >= a, difference, -difference) / _num_positions(clean)


def _bernoulli_hvp(logits: Tensor, v: Tensor) -> Tensor:
    z = wide(logits)
    return z.sigmoid() * (-z).sigmoid() * wide(v) / _num_positions(logits)  # 1 - σ(z) would be 0 for z above 17


def _normals(clean: Tensor, perturbed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of outputs (N, 2K, …): differences of the means and of the log-variances, and one over the second variances; each (N, K, …).

    Raises:
        ValueError: If dimension 1 is odd.
    """
    if clean.dim() < 2 or clean.shape[1] % 2:
        raise ValueError(f"output of shape {tuple(clean.shape)} must be (N, 2K, …) for GaussianWithVariance: K means, then K log-variances")
    (mean, log_variance), (other_mean, other_log_variance) = wide(clean).chunk(2, 1), wide(perturbed).chunk(2, 1)
    precision = (-other_log_variance).clamp(max=60).exp()  # infinite, it would turn two equal means into NaN
    return other_mean - mean, other_log_variance - log_variance, precision


def _not_negative(kl: Tensor) -> Tensor:
    """Replace a KL that rounding made negative by 0, but keep its gradient. Close to r = 0 half of all values are negative."""
    return kl + torch.where(kl < 0, -kl, 0).detach()


def _pick(choice: Tensor, among: int | Tensor) -> Tensor:
    """Map numbers in [0, 1) to integers 0 … among - 1."""
    return (choice * among).long().clamp(max=among - 1)  # the product may round up to `among`


def _num_positions(logits: Tensor) -> int:
    return max(1, math.prod(logits.shape[2:]))


def _sum_over_outputs(value: Tensor) -> Tensor:
    return value.sum(1) if value.dim() > 1 else value


def _mean_over_positions(value: Tensor) -> Tensor:
    return value.flatten(1).mean(1) if value.dim() > 1 else value


T = TypeVar("T")


def by_name(kind: str, table: Mapping[str, T], choice: str | T) -> T:
    """Return the object named `choice` in `table`, or `choice` itself if it is not a string.

    Raises:
        ValueError: If the name is not in the table. The error lists the names in it.
    """
    if not isinstance(choice, str):
        return choice
    if choice not in table:
        raise ValueError(f"unknown {kind} {choice!r}: choose one of {', '.join(table)}")
    return table[choice]
