"""The wide residual network on which Oliver et al. compare semi-supervised methods."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vat.models.image_shape import image_channels

# Oliver et al. run 500,000 updates with momentum 0.001. After a few thousand updates with that momentum, the statistics
# would still depend on their initial values. With 0.01 these are forgotten within 500 updates, and the average still
# covers a hundred batches.
BATCH_NORM_MOMENTUM = 0.01
BATCH_NORM_EPS = 1e-3
LEAKY_RELU_SLOPE = 0.1


class WideResNet(nn.Module):
    """A pre-activation wide residual network, WRN-``depth``-``width``. The default is WRN-28-2.

    Zagoruyko and Komodakis, *Wide Residual Networks*, arXiv 1605.07146, in the variant of Oliver et al.,
    arXiv 1804.09170: leaky ReLU 0.1, no dropout, and only the first unit's shortcut starts after the activation.

    Args:
        input_shape: Shape (channels, height, width) of one image. The paper's shape is 3 × 32 × 32.
        num_classes: Number of logits.
        depth: Number of layers: 6 n + 4, for n residual units in each of the three groups.
        width: Factor on the 16, 32 and 64 channels of the three groups, >= 1.

    Raises:
        ValueError: If ``input_shape`` is not the shape of an image, or ``depth`` or ``width`` is out of range.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, *, depth: int = 28, width: int = 2) -> None:
        super().__init__()
        units, remainder = divmod(depth - 4, 6)
        if units < 1 or remainder:
            raise ValueError(f"depth must be 10, 16, 22, 28, … (6 n + 4), got {depth}")
        if width < 1:
            raise ValueError(f"width must be >= 1, got {width}")

        channels = 16
        layers: list[nn.Module] = [_convolution(image_channels(input_shape, smallest=1), channels, 3)]
        for group, stride in enumerate((1, 2, 2)):
            out_channels = 16 * 2**group * width
            for unit in range(units):
                layers.append(
                    _ResidualUnit(
                        channels,
                        out_channels,
                        stride=stride if unit == 0 else 1,
                        activate_shortcut=group == unit == 0,
                    )
                )
                channels = out_channels
        self.layers = nn.Sequential(
            *layers,
            _batch_norm(channels),
            nn.LeakyReLU(LEAKY_RELU_SLOPE),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, num_classes),
        )

        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images of shape (N, channels, height, width) to logits of shape (N, num_classes)."""
        return self.layers(x)


class _ResidualUnit(nn.Module):
    """Twice batch norm, leaky ReLU and 3×3 convolution, with a shortcut. If the channels change, the shortcut is a 1×1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, activate_shortcut: bool) -> None:
        super().__init__()
        self.norm1 = _batch_norm(in_channels)
        self.conv1 = _convolution(in_channels, out_channels, 3, stride)
        self.norm2 = _batch_norm(out_channels)
        self.conv2 = _convolution(out_channels, out_channels, 3)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else _convolution(in_channels, out_channels, 1, stride)
        self.activate_shortcut = activate_shortcut

    def forward(self, x: Tensor) -> Tensor:
        activated = F.leaky_relu(self.norm1(x), LEAKY_RELU_SLOPE)
        residual = self.conv2(F.leaky_relu(self.norm2(self.conv1(activated)), LEAKY_RELU_SLOPE))
        return residual + self.shortcut(activated if self.activate_shortcut else x)


def _convolution(in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, size, stride=stride, padding=size // 2, bias=False)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)
