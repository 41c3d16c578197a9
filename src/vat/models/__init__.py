"""Networks that map a batch to logits: the papers' networks, one for small images, one for colour images on a CPU, and text networks."""

from vat.models.cnn import CNN
from vat.models.conv import ConvLarge, ConvSmall
from vat.models.huggingface import HuggingFace
from vat.models.mlp import MLP, GaussianNoise
from vat.models.normalize import Normalize
from vat.models.resnet import WideResNet
from vat.models.text import NormalizedEmbedding, TextCNN, TextMean, TextNetwork
from vat.models.whitened_cnn import WhitenedCNN, whiten, whitening_layers

__all__ = [
    "CNN",
    "MLP",
    "ConvLarge",
    "ConvSmall",
    "GaussianNoise",
    "HuggingFace",
    "Normalize",
    "NormalizedEmbedding",
    "TextCNN",
    "TextMean",
    "TextNetwork",
    "WhitenedCNN",
    "WideResNet",
    "whiten",
    "whitening_layers",
]
