"""Adversarial examples of another network."""

import torch
from torch import Tensor, nn

from vat.attacks.base import Attack, at_least_one, each, look, predictions
from vat.attacks.losses import logit_difference
from vat.attacks.pgd import cosine
from vat.attacks.threat import Threat
from vat.network import Forward


class Transfer(Attack):
    """Points found with the gradients of another network, without any pass of the attacked network.

    Args:
        source: Network trained independently for the same classes, in evaluation mode.
        steps: Number of PGD steps on the difference of its logits, >= 1.
    """

    white_box = False

    def __init__(self, source: nn.Module, *, steps: int = 40):
        self.source, self.steps = source, at_least_one("steps", steps)

    def __call__(self, network: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        point = x
        for step in range(self.steps):
            gradient = look(self.source, point, y, logit_difference).gradient
            point = threat.step(x, point, gradient, 2.5 / self.steps * threat.eps * cosine(step / self.steps), generator)
        misclassified = predictions(network, point) != y
        return torch.where(each(misclassified, x), point, x)
