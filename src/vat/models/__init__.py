"""The papers' networks, and two for a CPU: one for small images, one for colour images. Each maps a batch to logits."""

from vat.models.cnn import CNN
from vat.models.conv import ConvLarge, ConvSmall
from vat.models.mlp import MLP, GaussianNoise
from vat.models.normalize import Normalize
from vat.models.resnet import WideResNet
from vat.models.whitened_cnn import WhitenedCNN, whiten, whitening_layers

__all__ = ["CNN", "MLP", "ConvLarge", "ConvSmall", "GaussianNoise", "Normalize", "WhitenedCNN", "WideResNet", "whiten", "whitening_layers"]
