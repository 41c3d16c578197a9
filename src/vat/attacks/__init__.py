"""Attacks: each searches the ball of radius ε around an input for a point that the network misclassifies.

An attack is a call `attack(network, x, y, threat, generator)`. For each example it returns a misclassified point, or the input itself if
it finds none. It does not search further for an example once it is misclassified. All randomness comes from the generator. Losses are
computed in float64: in float32 the softmax of a certain prediction has no gradient, and the model would seem robust because of that.
"""

from vat.attacks.apgd import APGD
from vat.attacks.autoattack import AutoAttack
from vat.attacks.base import Attack, predictions
from vat.attacks.losses import LOSSES, cross_entropy, logit_difference, scaled_difference
from vat.attacks.pgd import FGM, PGD, SCHEDULES
from vat.attacks.random_noise import RandomNoise
from vat.attacks.square import Square
from vat.attacks.threat import Threat
from vat.attacks.transfer import Transfer

__all__ = [
    "APGD",
    "FGM",
    "LOSSES",
    "PGD",
    "SCHEDULES",
    "Attack",
    "AutoAttack",
    "RandomNoise",
    "Square",
    "Threat",
    "Transfer",
    "cross_entropy",
    "logit_difference",
    "predictions",
    "scaled_difference",
]
