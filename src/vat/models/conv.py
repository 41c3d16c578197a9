"""conv-small and conv-large, the networks of TPAMI's SVHN and CIFAR-10 runs: one architecture with two sets of widths.

Miyato, Maeda, Koyama, Ishii, *Virtual Adversarial Training*, arXiv 1704.03976, table of CNN models.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from vat.models.image_shape import image_channels

# The published code averages batch statistics with a decay of 0.99. Torch's default momentum of 0.1 averages only about ten
# batches, and a batch has 32 labelled images. The published code adds 1e-6 to the variance, a tenth of torch's default.
BATCH_NORM_MOMENTUM = 0.01
BATCH_NORM_EPS = 1e-6
LEAKY_RELU_SLOPE = 0.1


class _NineConvolutions(nn.Module):
    """Three 3×3 convolutions, pool, three more, pool, then 3×3 without padding, 1×1, 1×1, global average, linear.

    Args:
        widths: Five numbers of channels: of the first three convolutions, of the next three, and of each of the last three.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, widths: Sequence[int], *, dropout: float, top_bn: bool) -> None:
        super().__init__()
        # An image of 12 pixels shrinks to 6 and 3 by the poolings, and to 1 by the convolution without padding.
        in_channels = image_channels(input_shape, smallest=12)
        first, second, *last = widths
        self.layers = nn.Sequential(
            *_convolution(in_channels, first, 3, padding=1),
            *_convolution(first, first, 3, padding=1),
            *_convolution(first, first, 3, padding=1),
            nn.MaxPool2d(2),
            nn.Dropout(dropout),
            *_convolution(first, second, 3, padding=1),
            *_convolution(second, second, 3, padding=1),
            *_convolution(second, second, 3, padding=1),
            nn.MaxPool2d(2),
            nn.Dropout(dropout),
            *_convolution(second, last[0], 3),
            *_convolution(last[0], last[1], 1),
            *_convolution(last[1], last[2], 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(last[2], num_classes, bias=not top_bn),
            *([nn.BatchNorm1d(num_classes, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)] if top_bn else []),
        )
        # He's variance 2 / fan_in, as in the published code. Torch's default weights are √6 times smaller, and with batch
        # norm a smaller weight acts as a higher learning rate.
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images of shape (N, channels, height, width) to logits of shape (N, num_classes)."""
        return self.layers(x)


def _convolution(in_channels: int, out_channels: int, size: int, *, padding: int = 0) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, size, padding=padding, bias=False),
        nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM),
        nn.LeakyReLU(LEAKY_RELU_SLOPE),
    ]


class ConvSmall(_NineConvolutions):
    """TPAMI's conv-small, the discriminator of Salimans et al. (arXiv 1606.03498) with batch norm.

    Args:
        input_shape: Shape (channels, height, width) of one image, at least 12 × 12 pixels. The papers' shape is 3 × 32 × 32.
        num_classes: Number of logits.
        width: Channels of the first three convolutions: 96 for CIFAR-10, 64 for SVHN. The other six have twice as many.
        dropout: Probability that an entry is dropped after each pooling in training mode.
        top_bn: Whether the logits also have (affine) batch norm, as in the published SVHN runs.

    Raises:
        ValueError: If the images are too small, or ``width`` or ``dropout`` is out of range.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        width: int = 96,
        dropout: float = 0.5,
        top_bn: bool = False,
    ) -> None:
        if width < 1:
            raise ValueError(f"width must be >= 1, got {width}: the paper has 96 for CIFAR-10 and 64 for SVHN")
        widths = (width, 2 * width, 2 * width, 2 * width, 2 * width)
        super().__init__(input_shape, num_classes, widths, dropout=dropout, top_bn=top_bn)


class ConvLarge(_NineConvolutions):
    """TPAMI's conv-large, the network of its best results on SVHN and CIFAR-10. Later papers call it the 13-layer network.

    Args:
        input_shape: Shape (channels, height, width) of one image, at least 12 × 12 pixels. The papers' shape is 3 × 32 × 32.
        num_classes: Number of logits.
        dropout: Probability that an entry is dropped after each pooling in training mode.
        top_bn: Whether the logits also have (affine) batch norm, as in the published SVHN runs.

    Raises:
        ValueError: If the images are too small, or ``dropout`` is out of range.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, *, dropout: float = 0.5, top_bn: bool = False) -> None:
        super().__init__(input_shape, num_classes, (128, 256, 512, 256, 128), dropout=dropout, top_bn=top_bn)
