"""Choose a radius without validation labels, by what networks predict for unlabelled inputs.

A radius that is too large reaches into other classes. Then even a random r of its length changes the predictions, although a random r is
far from the worst one. So the rule takes the largest radius at which a random r changes them by at most 0.003 nats. It uses no labels.
docs/choosing_eps.md compares it with other rules on nine data sets.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vat.calls import Call
from vat.functional import DIVERGENCES, as_classes, by_name
from vat.network import Forward
from vat.norms import NORMS, Norm
from vat.step import Key, Step

MOST_KL = 0.003
"""Nats by which a random r may change the predictions."""
LEFT_OUT = 0.5
"""A radius is excluded if the rarest class is predicted less than this many times as often as without VAT: two classes have merged."""
RESAMPLED = 200
"""Number of bootstrap samples of the unlabelled examples, which measure how stable a choice is."""


@dataclass(frozen=True)
class Pilot:
    """Predictions for unlabelled examples from networks trained with one radius. The networks differ in their initial weights.

    Args:
        eps: Radius; 0 for training without VAT.
        predictions: Predicted class of each network and example, int64 (networks, N), or of each position that counts.
        kl_random: Mean over the networks of the KL at a random r of length `eps`, in nats, (N,).
        num_classes: Number of classes.
        prior: Expected share of each class, (C,); equal shares if None.
    """

    eps: float
    predictions: Tensor
    kl_random: Tensor
    num_classes: int
    prior: Tensor | None = None

    @property
    def disagreement(self) -> Tensor:
        """Share (N,) of the pairs of networks that disagree, for each example."""
        pairs = torch.combinations(torch.arange(len(self.predictions)))
        first, second = self.predictions[pairs].unbind(1)
        return (first != second).double().mean(0)

    @property
    def smallest_share(self) -> float:
        """How often a network predicts its rarest class, divided by that class's expected share: the mean over the networks.

        It is computed for each network: two networks that each predict a single class, but different ones, would look balanced together.
        """
        counts = torch.stack([torch.bincount(row, minlength=self.num_classes) for row in self.predictions]).double()
        found = counts / counts.sum(1, keepdim=True)
        expected = torch.full_like(found[0], 1 / self.num_classes) if self.prior is None else self.prior.double() / self.prior.sum()
        return float((found[:, expected > 0] / expected[expected > 0]).amin(1).mean())


@dataclass(frozen=True)
class Choice:
    """The chosen radius and the evidence for it.

    Args:
        eps: Radius; 0 if every candidate is excluded.
        pilots: Pilots of every candidate, in order of the radius.
        sure: Share of the resampled sets of examples that lead to the same radius or a neighbouring candidate.
    """

    eps: float
    pilots: tuple[Pilot, ...]
    sure: float

    def rows(self) -> list[dict[str, float]]:
        """Table with a row for each candidate, in plain numbers."""
        merged = _merged(self.pilots)
        return [
            {
                "eps": pilot.eps,
                "kl_random": float(pilot.kl_random.mean()),
                "disagreement": float(pilot.disagreement.mean()),
                "standard_error": float(pilot.disagreement.std() / math.sqrt(len(pilot.disagreement))),
                "smallest_share": pilot.smallest_share,
                "allowed": float(float(pilot.kl_random.mean()) <= MOST_KL and pilot.eps not in merged),
            }
            for pilot in self.pilots
        ]


@torch.no_grad()
def pilot(
    networks: Sequence[Forward],
    x: Any,
    *,
    eps: float,
    prior: Tensor | None = None,
    batch_size: int = 500,
    norm: str | Norm = "l2",
    per: str = "example",
    at: str | int | None = None,
    **of_step: Any,
) -> Pilot:
    """Compute a `Pilot` of networks that were trained with one radius.

    Args:
        networks: Functions x -> logits (N, C), in evaluation mode; they differ in their initial weights.
        x: Unlabelled inputs (N, …), or a tuple or mapping of the network's arguments; see `Step`.
        eps: Radius, in the units of the perturbed tensor.
        prior: Expected share of each class, (C,); equal shares if None.
        batch_size: Number of examples in a batch.
        norm: Norm of r, as for `VAT`.
        per: Unit whose r has norm ε, as for `VAT`.
        at: What to perturb: the name of a layer, whose output is perturbed, or the name or number of an argument.
        **of_step: Further arguments of the term for all of x, as `mask` or `class_dim`; see `Step`.

    Raises:
        ValueError: If there is no network or no input.
    """
    number = _num_rows(x)
    if not networks or not number:
        raise ValueError(f"pilot needs at least one network and one input, got {len(networks)} networks and {number} inputs")
    norm, kind = by_name("norm", NORMS, norm), DIVERGENCES["categorical"]
    predictions, kl, num_classes = [], [], 0
    size = batch_size if of_step.get("group") is None else number  # graphs are not divided
    for start in range(0, number, size):
        rows, found = slice(start, start + size), []
        for network in networks:
            module = network if isinstance(network, nn.Module) else None
            place = at if module is None else dict(module.named_modules()).get(str(at), at)
            options = {name: _part(value, rows, number) for name, value in of_step.items()}
            step = Step(network, _part(x, rows, number), module=module or (), at=place, key=Key(start), **options)
            divergence, r = step.divergence(kind), step.radius(eps) * step.norm(norm, per).sample(step.normal("pilot"))
            kl_random = divergence(step.target, step.network(step.x + r.to(step.x.dtype), constant=True))
            decisions, mask = as_classes(step.target).argmax(1), step.mask_of(step.target)
            found.append((kl_random, decisions.flatten() if mask is None else decisions[mask[:, 0]]))
            num_classes = as_classes(step.target).shape[1]
        kl.append(torch.stack([kl_random for kl_random, _ in found]).mean(0).cpu())
        predictions.append(torch.stack([decisions for _, decisions in found]).cpu())
    return Pilot(eps, torch.cat(predictions, 1), torch.cat(kl).double(), num_classes, prior)


def _num_rows(x: Any) -> int:
    """Number of inputs: the rows of the first tensor in a call."""
    call = Call.of(x)
    return next((len(value) for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor) and value.dim()), 0)


def _part(value: Any, rows: slice, number: int) -> Any:
    """Take some rows of each tensor that has `number` rows, also inside a call."""
    if isinstance(value, Tensor):
        return value[rows] if value.dim() and len(value) == number else value
    if isinstance(value, Call):
        return Call(*_part(value.args, rows, number), **_part(value.kwargs, rows, number))
    if isinstance(value, Mapping):
        return {name: _part(one, rows, number) for name, one in value.items()}
    return tuple(_part(one, rows, number) for one in value) if isinstance(value, tuple | list) else value


def choose(pilots: Iterable[Pilot]) -> Choice:
    """Choose a radius from pilots.

    Args:
        pilots: One pilot for each radius, all of the same examples. A pilot at radius 0 shows which classes are predicted without VAT.

    Raises:
        ValueError: If there are none, or their numbers of examples differ.
    """
    ordered = tuple(sorted(pilots, key=lambda pilot: pilot.eps))
    if len({pilot.predictions.shape[1] for pilot in ordered}) != 1:
        numbers = sorted({pilot.predictions.shape[1] for pilot in ordered})
        raise ValueError(f"choose needs a pilot for each radius, all of the same examples, got numbers of examples {numbers}")
    merged, number = _merged(ordered), ordered[0].predictions.shape[1]
    eps = _largest(ordered, merged)
    radii = [pilot.eps for pilot in ordered]
    generator = torch.Generator().manual_seed(0)
    found = [_largest(ordered, merged, torch.randint(number, (number,), generator=generator)) for _ in range(RESAMPLED)]
    near = sum(abs(radii.index(other) - radii.index(eps)) <= 1 for other in found if other or not eps) if eps in radii else found.count(eps)
    return Choice(eps, ordered, near / RESAMPLED)


def choose_eps(
    train: Callable[[float, int], Forward],
    x: Tensor,
    *,
    candidates: Sequence[float],
    seeds: Sequence[int] = (0, 1),
    prior: Tensor | None = None,
    **of_pilot: Any,
) -> Choice:
    """Train with each radius and seed, and choose the radius by unlabelled inputs only.

        >>> def train(eps, seed):
        ...     torch.manual_seed(seed)
        ...     return nn.Linear(100, 3).eval()  # a real one is trained, with VAT(eps)
        >>> choice = choose_eps(train, torch.randn(200, 100), candidates=[0.5, 1, 2, 4])
        >>> choice.eps
        1
        >>> model = train(choice.eps, 0)

    Args:
        train: Function (eps, seed) -> trained network x -> logits in evaluation mode. The seed sets its initial weights. Radius 0 means
            training without VAT. A quarter of the final run's steps is enough.
        x: Several hundred unlabelled inputs (N, …), as for `pilot`.
        candidates: Radii > 0, each about twice the last one. 0 is always trained, too.
        seeds: One or more seeds. With two or more, the table shows how often their networks disagree.
        prior: Expected share of each class, (C,); equal shares if None.
        **of_pilot: The term's arguments in training, for all of x: `norm`, `per`, `at`, `mask`, `class_dim`; see `pilot`.

    Raises:
        ValueError: If there is no candidate or no seed, or a candidate is not positive.
    """
    if not candidates or min(candidates) <= 0:
        raise ValueError(f"candidates must be radii > 0, got {list(candidates)}: leave 0 out, it is always trained")
    if not seeds:
        raise ValueError("seeds must have at least one seed, got none")
    radii = (0.0, *sorted(set(candidates)))
    return choose(pilot([train(eps, seed) for seed in seeds], x, eps=eps, prior=prior, **of_pilot) for eps in radii)


def _merged(pilots: Sequence[Pilot]) -> set[float]:
    """Radii at which a class that is predicted without VAT is hardly predicted any more."""
    without = next((pilot.smallest_share for pilot in pilots if not pilot.eps), 1.0)
    return {pilot.eps for pilot in pilots if pilot.eps and pilot.smallest_share < LEFT_OUT * without}


def _largest(pilots: Sequence[Pilot], merged: set[float], rows: Tensor | None = None) -> float:
    """Largest radius that is not excluded, by all examples or by some rows; 0 if all are excluded."""
    means = {p.eps: float((p.kl_random if rows is None else p.kl_random[rows]).mean()) for p in pilots if p.eps not in merged}
    return max((eps for eps, kl in means.items() if eps and kl <= MOST_KL), default=0.0)
