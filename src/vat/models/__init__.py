"""The papers' networks, and a small one for small images; each maps a batch to logits."""

from vat.models.cnn import CNN
from vat.models.conv import ConvLarge, ConvSmall
from vat.models.mlp import MLP, GaussianNoise
from vat.models.normalize import Normalize
from vat.models.resnet import WideResNet

__all__ = ["CNN", "MLP", "ConvLarge", "ConvSmall", "GaussianNoise", "Normalize", "WideResNet"]
