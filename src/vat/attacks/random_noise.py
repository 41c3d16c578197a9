"""Random perturbations as an attack."""

import torch
from torch import Tensor

from vat.attacks.base import Attack, at_least_one, predictions
from vat.attacks.threat import Threat
from vat.network import Forward


class RandomNoise(Attack):
    """Perturbations of length ε in random directions: the weakest attack.

    Args:
        draws: Number of directions, >= 1. An example is robust if none of them changes its class.
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
            misclassified = predictions(network, point) != y[rows]
            found[rows[misclassified]] = point[misclassified]
            rows = rows[~misclassified]
            if not len(rows):
                break
        return found
