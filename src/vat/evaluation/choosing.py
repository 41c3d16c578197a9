"""Choose a radius without validation labels: what several models trained alike say of unlabelled inputs.

Models that differ in their initial weights alone disagree about as often as they are wrong (Jiang et al., arXiv 2106.13799). A radius that
reaches into other classes shows as well: a random r of its length changes the predictions. docs/choosing_eps.md has the measurements.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vat.functional import DIVERGENCES, L2, as_classes
from vat.step import Forward

TOO_LARGE = 0.01
"""Nats by which a random r may change the predictions; a larger radius reaches into other classes."""
LEFT_OUT = 0.4
"""A class that is predicted less often than this share of what is expected has probably merged with another one."""
RESAMPLED = 200
"""Bootstrap samples of the unlabelled examples, which tell how sure a choice is."""


@dataclass(frozen=True)
class Pilot:
    """What models trained alike, apart from their initial weights, say of the same unlabelled examples.

    Args:
        eps: The radius they were trained with; 0 for training without VAT.
        predictions: The class that each predicts, int64 (models, N).
        kl_random: Mean over the models of the KL at a random r of length `eps`, in nats, (N,).
        num_classes: Classes that there are.
        prior: Expected share of each class, (C,); all alike if None.
    """

    eps: float
    predictions: Tensor
    kl_random: Tensor
    num_classes: int
    prior: Tensor | None = None

    @property
    def disagreement(self) -> Tensor:
        """Share of the pairs of models that disagree, for each example: (N,)."""
        pairs = torch.combinations(torch.arange(len(self.predictions)))
        first, second = self.predictions[pairs].unbind(1)
        return (first != second).double().mean(0)

    def smallest_share(self, rows: Tensor | None = None) -> float:
        """How often the rarest class is predicted, as a share of what is expected; of all examples, or of some rows."""
        chosen = self.predictions if rows is None else self.predictions[:, rows]
        found = torch.bincount(chosen.flatten(), minlength=self.num_classes).double() / chosen.numel()
        expected = torch.full_like(found, 1 / self.num_classes) if self.prior is None else self.prior.double() / self.prior.sum()
        return float((found / expected.clamp(min=1e-12))[expected > 0].min())


@dataclass(frozen=True)
class Choice:
    """A radius, and what it was chosen by.

    Args:
        eps: The radius; 0 if VAT does not help.
        pilots: Of every candidate, by radius.
        sure: Share of resampled sets of examples on which the same radius is chosen, or one of its two neighbours among the candidates.
        without: Share of them on which training without VAT is chosen.
    """

    eps: float
    pilots: tuple[Pilot, ...]
    sure: float
    without: float

    def rows(self) -> list[dict[str, float]]:
        """The table: a row for each candidate, in plain numbers."""
        return [
            {
                "eps": pilot.eps,
                "disagreement": float(pilot.disagreement.mean()),
                "standard_error": float(pilot.disagreement.std() / math.sqrt(len(pilot.disagreement))),
                "kl_random": float(pilot.kl_random.mean()),
                "smallest_share": pilot.smallest_share(),
                "allowed": float(allowed(pilot)),
            }
            for pilot in self.pilots
        ]


@torch.no_grad()
def pilot(models: Sequence[Forward], x: Tensor, *, eps: float, prior: Tensor | None = None, batch_size: int = 500) -> Pilot:
    """Look at models that were trained with one radius.

    Args:
        models: x -> logits (N, C), in evaluation mode; they differ in their initial weights.
        x: Unlabelled inputs (N, …).
        eps: The radius.
        prior: Expected share of each class, (C,); all alike if None.
        batch_size: Examples at a time.

    Raises:
        ValueError: If there are fewer than two models.
    """
    if len(models) < 2:
        raise ValueError(f"{len(models)} model cannot disagree: train two for each eps")
    generator = torch.Generator().manual_seed(0)
    divergence, predictions, kl, num_classes = DIVERGENCES["categorical"], [], [], 0
    for rows in x.split(batch_size):
        noise = torch.randn(rows.shape, generator=generator).to(rows)
        r = eps * L2().sample(noise)
        clean = [as_classes(model(rows)) for model in models]
        kl.append(torch.stack([divergence(z, as_classes(model(rows + r))) for z, model in zip(clean, models, strict=True)]).mean(0).cpu())
        predictions.append(torch.stack([z.argmax(1) for z in clean]).cpu())
        num_classes = clean[0].shape[1]
    return Pilot(eps, torch.cat(predictions, 1), torch.cat(kl).double(), num_classes, prior)


def allowed(pilot: Pilot, rows: Tensor | None = None) -> bool:
    """Whether a radius is small enough, and no class is left out; of all examples, or of some rows."""
    kl = pilot.kl_random if rows is None else pilot.kl_random[rows]
    return float(kl.mean()) <= TOO_LARGE and pilot.smallest_share(rows) >= LEFT_OUT


def best(pilots: Sequence[Pilot], rows: Tensor | None = None) -> float:
    """The radius with the least disagreement among those that are allowed, the larger one of equals; 0 if none is allowed.

    Disagreement is smoothed over neighbouring radii, with weights 1, 2, 1: of a few hundred examples it is known to about a point.
    """
    ordered = sorted(pilots, key=lambda pilot: pilot.eps)
    values = [float((p.disagreement if rows is None else p.disagreement[rows]).mean()) for p in ordered]
    scores = {}
    for number, candidate in enumerate(ordered):
        if not candidate.eps:
            scores[candidate.eps] = values[number]
        elif allowed(candidate, rows):
            near = [
                (2 if n == number else 1, values[n])
                for n in (number - 1, number, number + 1)
                if n in range(len(ordered)) and ordered[n].eps
            ]
            scores[candidate.eps] = sum(w * v for w, v in near) / sum(w for w, _ in near)
    return min(scores, key=lambda eps: (scores[eps], -eps), default=0.0)


def choose(pilots: Iterable[Pilot]) -> Choice:
    """Choose among radii.

    Args:
        pilots: One for each radius, of the same examples; one at radius 0 tells whether VAT helps at all.

    Raises:
        ValueError: If there are none, or they are of different numbers of examples.
    """
    ordered = tuple(sorted(pilots, key=lambda pilot: pilot.eps))
    if len({pilot.predictions.shape[1] for pilot in ordered}) != 1:
        raise ValueError("choose needs pilots of the same examples: one for each radius")
    eps, number = best(ordered), ordered[0].predictions.shape[1]
    radii = [pilot.eps for pilot in ordered]
    generator = torch.Generator().manual_seed(0)
    found = [best(ordered, torch.randint(number, (number,), generator=generator)) for _ in range(RESAMPLED)]
    near = sum(abs(radii.index(other) - radii.index(eps)) <= 1 and bool(other) == bool(eps) for other in found)
    return Choice(eps, ordered, near / RESAMPLED, found.count(0.0) / RESAMPLED)


def choose_eps(
    train: Callable[[float, int], Forward],
    x: Tensor,
    *,
    candidates: Sequence[float],
    seeds: Sequence[int] = (0, 1),
    prior: Tensor | None = None,
) -> Choice:
    """Train with each radius from each seed, and choose the radius by unlabelled inputs alone.

        choice = choose_eps(train, unlabeled, candidates=[0.5, 1, 2, 4])
        model = train(choice.eps, 0)

    Args:
        train: (eps, seed) -> a trained model in evaluation mode, x -> logits. The seed sets its initial weights; a radius of 0 means
            training without VAT. A quarter of the final run's steps is enough.
        x: Some hundred unlabelled inputs (N, …).
        candidates: Radii > 0, each about twice the last one. 0 is always compared with them.
        seeds: Two or more.
        prior: Expected share of each class, (C,); all alike if None.

    Raises:
        ValueError: If there is no candidate, one is not positive, or there are fewer than two seeds.
    """
    if not candidates or min(candidates) <= 0:
        raise ValueError(f"candidates must be radii > 0, got {list(candidates)}: 0 is compared with them anyway")
    if len(set(seeds)) < 2:
        raise ValueError(f"seeds must be two different ones at least, got {list(seeds)}")
    return choose(pilot([train(eps, seed) for seed in seeds], x, eps=eps, prior=prior) for eps in (0.0, *sorted(set(candidates))))
