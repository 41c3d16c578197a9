"""The small convolutional network for small images: 8×8 digits up to 32×32, in seconds on a CPU."""

from collections.abc import Sequence

from torch import Tensor, nn

from vat.models.image_shape import image_channels


class CNN(nn.Module):
    """Stages of 3×3 convolution, batch norm, ReLU and 2×2 average pooling, then dropout and one linear layer.

    The linear layer sees where a feature lies, which tells a 6 from a 9; so the network takes images of one size only.

    Args:
        input_shape: (channels, height, width) of one image; height and width at least 2 to the number of stages.
        num_classes: Number of logits.
        channels: Channels of each stage, from the input on.
        dropout: Probability that an input of the linear layer is dropped in training mode.

    Raises:
        ValueError: If ``channels`` or ``dropout`` is out of range, or the images are too small for the poolings.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        channels: Sequence[int] = (32, 64),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise ValueError(f"channels must name at least one stage of at least one channel, got {tuple(channels)}")
        shrinkage = 2 ** len(channels)
        in_channels = image_channels(input_shape, smallest=shrinkage)
        height, width = input_shape[1:]

        layers: list[nn.Module] = []
        for out_channels in channels:
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
                # Without channels_last a CPU takes several times longer over the maximum.
                nn.AvgPool2d(2),
            ]
            in_channels = out_channels
        pixels = (height // shrinkage) * (width // shrinkage)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(in_channels * pixels, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map images of shape (N, *input_shape) to logits of shape (N, num_classes)."""
        return self.layers(x)
