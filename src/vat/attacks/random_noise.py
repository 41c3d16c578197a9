"""Random perturbations."""

import torch
from torch import Tensor

from vat.attacks.base import Attack, at_least_one, predictions
from vat.attacks.threat import Threat
from vat.step import Forward


class RandomNoise(Attack):
    """Perturbations of length ε in random directions: what robustness must at least mean.

    Args:
        draws: of which each example must stand all.
    """

    white_box = False

    def __init__(self, *, draws: int = 1):
        self.draws = at_least_one("draws", draws)

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
