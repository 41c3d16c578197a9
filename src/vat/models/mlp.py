"""The multilayer perceptrons of both papers, and the noise layer of the later paper."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class GaussianNoise(nn.Module):
    """Add Gaussian noise in training mode. In evaluation mode, return the input.

    The noise comes from torch's default generator, as for dropout. To get the same noise in two passes, set the state of
    that generator before each.

    Args:
        std: Standard deviation of the noise, >= 0, in the units of the layer's input.

    Raises:
        ValueError: If ``std`` is negative.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        if not std >= 0.0:
            raise ValueError(f"the standard deviation of the noise must be >= 0, got {std}: 0 adds no noise")
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs of any shape to the same shape."""
        return x + self.std * torch.randn_like(x) if self.training else x

    def extra_repr(self) -> str:
        """Text of the standard deviation in the printed module."""
        return f"std={self.std}"


def default_hidden(input_shape: Sequence[int]) -> list[int]:
    """Two layers of four units for each entry of an input, from 64 to DSVAT's 1,200: 30 features do not need 1.5 million weights."""
    return 2 * [min(1200, max(64, 4 * math.prod(input_shape)))]


class MLP(nn.Module):
    """A multilayer perceptron with rectified linear units, on inputs of any shape.

    A hidden layer is linear, batch norm, ReLU, Gaussian noise, dropout. The noise comes after the ReLU. The authors of VAT
    take it from the discriminator of Salimans et al., arXiv 1606.03498, which adds noise to the output of a hidden layer.
    A ReLU after the noise would remove half of it.

    The papers' networks:

    - DSVAT (arXiv 1507.00677), supervised MNIST: ``hidden=(1200, 600, 300, 150)``, ``batch_norm_logits``, ``init="fan_in"``
    - DSVAT, semi-supervised MNIST: ``hidden=(1200, 1200)``, ``batch_norm_logits``, ``init="fan_in"``
    - DSVAT, synthetic sets: ``hidden=(100,)``, no batch norm, ``init="fan_in"``
    - TPAMI (arXiv 1704.03976), semi-supervised MNIST: ``hidden=(1200, 600, 300, 150)``, ``noise=0.5``

    Args:
        input_shape: Shape of one example, without the batch. The network flattens it.
        num_classes: Number of logits.
        hidden: Units of each hidden layer, from the input to the output. None: two layers as in `default_hidden`.
        batch_norm: Whether every hidden layer has batch norm.
        batch_norm_logits: Whether the logits also have batch norm. It is affine, as in DSVAT's published code. Without a
            learned scale the logits would have variance 1, and no prediction could become certain.
        noise: Standard deviation of the noise on each hidden layer in training mode.
        dropout: Probability that a hidden unit is dropped in training mode.
        input_dropout: Probability that an entry of the input is dropped in training mode.
        init: Initialisation: ``"default"`` is torch's, ``"fan_in"`` is DSVAT's: weights from N(0, 1 / fan_in), biases 0.

    Raises:
        ValueError: If a size, a probability, the noise or ``init`` is out of range.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        hidden: Sequence[int] | None = None,
        batch_norm: bool = True,
        batch_norm_logits: bool = False,
        noise: float = 0.0,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        init: str = "default",
    ) -> None:
        super().__init__()
        hidden = default_hidden(input_shape) if hidden is None else hidden
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden must hold at least one number, each >= 1, got {tuple(hidden)}")
        if init not in ("default", "fan_in"):
            raise ValueError(f"init must be 'default' or 'fan_in', got {init!r}")

        width = math.prod(input_shape)
        layers: list[nn.Module] = [nn.Flatten()]
        if input_dropout:
            layers.append(nn.Dropout(input_dropout))
        for units in hidden:
            # No bias before batch norm: batch norm subtracts it, so it would be a parameter without a gradient.
            layers.append(nn.Linear(width, units, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(units))
            layers.append(nn.ReLU())
            if noise:
                layers.append(GaussianNoise(noise))
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = units
        layers.append(nn.Linear(width, num_classes, bias=not batch_norm_logits))
        if batch_norm_logits:
            layers.append(nn.BatchNorm1d(num_classes))
        self.layers = nn.Sequential(*layers)

        if init == "fan_in":
            for layer in self.layers:
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs of shape (N, *input_shape) to logits of shape (N, num_classes)."""
        return self.layers(x)
