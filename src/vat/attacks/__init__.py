"""Attacks: each searches the ball of radius ε around an input for a point that the network takes for another class.

An attack is a call `attack(network, x, y, threat, generator)` which returns, for each example, the point at which it fell, or the input
itself where it stands. Examples that have fallen are left alone, and everything random comes from the generator. Losses are computed in
float64: in float32 the softmax of a certain prediction has no gradient, and a model would pass for robust because of it.
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
